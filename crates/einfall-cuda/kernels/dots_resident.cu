// dots, resident: the rows of a group lie in shared memory; a lane owns a lookup and reads its whole row, so nothing
// is exchanged between lanes. Chunks are read in a lane's own order, so that no two lanes of a phase share a bank.
// Defines: LISTERS (lanes a query: 1..32), P (loads of SHORT table values in flight a lane), BLOCK, STAGE, CLUSTER, SLICES
// (rows too long for shared memory are staged and gathered in so many slices of d; then f32 or f64 out, STAGE <= 1).

constexpr int QUERIES = 32 / LISTERS;
extern __shared__ __align__(128) unsigned char memory[];

#if CLUSTER > 1
#define CLUSTERED __cluster_dims__(CLUSTER, 1, 1)
#else
#define CLUSTERED
#endif
extern "C" __global__ void CLUSTERED __launch_bounds__(BLOCK, MINBLOCKS)
dots_resident(const __grid_constant__ Params a_) {
  const T* query = a_.other; const T* rows = a_.rows; const Index* table = a_.table; T* out = a_.out;
  unsigned* status = a_.status;
  const Problem& p = a_.problem;
  __shared__ __align__(8) u64 barrier_;
  const unsigned base = shared_address(memory), barrier = shared_address(&barrier_);
  const unsigned lane = threadIdx.x % 32, l = lane % LISTERS;
  const unsigned group = blockIdx.x / p.per_block, slot = blockIdx.x % p.per_block;
  // This block's queries, then its units: (query pack, part of the list).
  const unsigned q0 = (unsigned)((u64)p.queries * slot / p.per_block), q1 = (unsigned)((u64)p.queries * (slot + 1) / p.per_block);
  const unsigned units = (q1 - q0 + QUERIES - 1) / QUERIES * p.parts;
  Place at_group = {0, 0, 0, 0};
  add_place<0, SPLIT>(p, group, at_group);
  const unsigned twist = lane % TWIST * 16;

  #pragma unroll 1
  for (int slice = 0; slice < SLICES; slice++) {
  if (slice) __syncthreads();
  stage_start(base, barrier, rows + at_group.rows + slice * SLICE, (unsigned)p.n, p.row, BLOCK);
  bool staged = false;
  for (unsigned unit = threadIdx.x / 32; unit < units || !staged; unit += BLOCK / 32) {
    const unsigned o = q0 + unit / p.parts * QUERIES + lane / LISTERS;
    const unsigned from = unit % p.parts * p.part;
    const bool live = unit < units && o < q1;
    const unsigned last = unit < units ? min(p.k, from + p.part) : 0, to = live ? last : 0;
    Place at = at_group;
    if (live) add_place<SPLIT, OUTER>(p, o, at);
    const Index* list = table + at.table;
    Some next[P];
    #pragma unroll
    for (int i = 0; i < P; i++) next[i] = look_some(list, from + (i * LISTERS + l) * SHORT, to, p);
    Acc q[ROW_CHUNKS][PER];
    #pragma unroll
    for (int c = 0; c < ROW_CHUNKS; c++) {
      const unsigned chunk = (c & ~(TWIST - 1)) | ((c ^ lane) & (TWIST - 1));
      const T* from_query = query + at.query + slice * SLICE + chunk * PER;
      if constexpr (VEC * SIZE == 16)
        unpack(load<16, 0>(from_query, live), q[c]);
      else {
        #pragma unroll
        for (int i = 0; i < PER; i++) {
          Chunk<SIZE> x = load<SIZE, 0>(from_query + i, live && chunk * PER + i < SLICE);
          unpack(x, &q[c][i]);
        }
      }
    }
    if (!staged) { stage_finish(barrier, (unsigned)p.n); staged = true; }
    T* to_out = out + at.out;

    for (unsigned step = from; step < last; step += LISTERS * P * SHORT) {
      int r[P][SHORT];
      #pragma unroll
      for (int i = 0; i < P; i++)
        #pragma unroll
        for (int s = 0; s < SHORT; s++) {
          const unsigned k = step + (i * LISTERS + l) * SHORT + s;
          r[i][s] = row_of(next[i].v[s], k < to, p.n, status);
        }
      #pragma unroll
      for (int i = 0; i < P; i++) next[i] = look_some(list, step + ((P + i) * LISTERS + l) * SHORT, to, p);
      #pragma unroll
      for (int i = 0; i < P; i++) {
        const unsigned k = step + (i * LISTERS + l) * SHORT;
        if (P > 1 && step + i * LISTERS * SHORT >= last) break;
        Acc sum[SHORT];
        #pragma unroll
        for (int s = 0; s < SHORT; s++) {
          const unsigned a = base + (unsigned)max(r[i][s], 0) * PITCH + twist;
          Acc acc[2] = {0, 0};
          if (SLICES > 1 && slice && k < to) acc[0] = widen(to_out[(k + s) * p.out_k]);
          #pragma unroll
          for (int c = 0; c < ROW_CHUNKS; c++) {
            Acc x[PER];
            unpack(load_shared((a ^ (c % TWIST * 16)) + (c & ~(TWIST - 1)) * 16), x);
            #pragma unroll
            for (int v = 0; v < PER; v++) acc[c & 1] = fused(q[c][v], x[v], acc[c & 1]);
          }
          sum[s] = r[i][s] < 0 ? (Acc)0 : acc[0] + acc[1];
        }
        if (k < to) {
          if constexpr (SHORT == 1) to_out[k * p.out_k] = narrow(sum[0]);
          else store<SHORT * SIZE>(to_out + k, pack<SHORT * SIZE>(sum));
        }
      }
    }
  }
  }
#if CLUSTER > 1
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}
