// Joins the results of a list's splits, in order. A block has a row of a list. Defines: DV DT, and what `grouped.cu` is told.
extern "C" __global__ void __launch_bounds__(128) join(const __grid_constant__ Params p) {
#if GUARD
  if ((p.key == p.value) != (SHARED != 0)) return;
#endif
  const i64 list = blockIdx.x / p.rows, row = blockIdx.x % p.rows;
  const float* from = p.part + (list * p.splits * p.rows + row) * (DV + 2);
  const i64 pitch = p.rows * (DV + 2);
  float top = NINF, sum = 0.f;
  for (int s = 0; s < p.splits; s++) top = fmaxf(top, from[s * pitch + DV]);
  for (int s = 0; s < p.splits; s++) sum += top == NINF ? 0.f : __expf(from[s * pitch + DV] - top);
  const float inv = sum > 0.f ? 1.f / sum : 0.f;
  const Place at = list_place(p, list), in = row_place(p, row);
  for (int c = threadIdx.x * 2; c < DV; c += 256) {
    float x = 0.f, y = 0.f;
    for (int s = 0; s < p.splits; s++) {
      const float w = top == NINF ? 0.f : __expf(from[s * pitch + DV] - top) * inv;
      x += w * from[s * pitch + c]; y += w * from[s * pitch + c + 1];
    }
    *(u32*)(p.out + at.o + in.o + c) = pack2(x, y);
  }
  if (threadIdx.x == 0 && p.lse) p.lse[at.e + in.e] = sum > 0.f ? top + __logf(sum) : NINF;
}
