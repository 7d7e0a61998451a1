// attention_entries: the row that each place of each list names, as a key of the sort that inverts the table. What is left out sorts
// behind all rows. Outer loops as in attention_grad_key; entries count the loops that move the table, then the place in the list.
// Defines: those of attention.cuh, BLOCK, GROUPED, SHARED, TERMS.
constexpr int AT_TERMS = GROUPED + SHARED, AT_HEADS = GROUPED + SHARED + TERMS;

extern "C" __global__ void __launch_bounds__(BLOCK) attention_entries(const __grid_constant__ Params p) {
  const unsigned entries = (unsigned)p.entries, keys = (unsigned)p.keys, terms = (unsigned)p.terms, n = (unsigned)p.n;
  for (u64 i = (u64)blockIdx.x * BLOCK + threadIdx.x; i < entries; i += (u64)gridDim.x * BLOCK) {
    Place at = no_place();
#if RAGGED
    const unsigned group = 0, t = list_of(p, (unsigned)i);
    if (t < terms) add_place<AT_TERMS, AT_HEADS>(p, t, at);
    const int row = row_of(p, at, look(p, at, (unsigned)i, true), 0, t < terms);
#else
    const unsigned t_all = (unsigned)i / keys, kk = (unsigned)i - t_all * keys, group = t_all / terms, t = t_all - group * terms;
    add_place<0, GROUPED>(p, group, at);
    add_place<AT_TERMS, AT_HEADS>(p, t, at);
    const int row = row_of(p, at, look(p, at, kk, true), kk, true);
#endif
    p.to_keys[i] = row < 0 ? (unsigned)p.groups * n : group * n + (unsigned)row;
  }
}
