  // Which tile a block works on, and the offsets of its rows and columns; the loop over tiles stays open. Work is the type
  // that counts tiles: divisions of 64 bits take longer than all else here.
  const Work tiles_n = (Work)((p.columns + BN - 1) / BN);
#if SORTED
  const Work all = (Work)p.most_tiles * tiles_n;
#else
  const Work tiles_m = (Work)((p.rows + BM - 1) / BM), all = (Work)p.batches * tiles_m * tiles_n;
#endif
  for (Work work = blockIdx.x; work < all; work += gridDim.x) {
    bool ok = true;
#if SORTED
    // Rows with one value follow each other in `order`; the value's tiles are those from tiles[value] on.
    const unsigned tile = (unsigned)(work / tiles_n);
    const i64 n0 = (i64)(work % tiles_n) * BN;
    if (tile >= p.tiles[p.values + 1]) break;
    unsigned value = 0, above = (unsigned)p.values + 1;
    while (above - value > 1) {
      const unsigned middle = (value + above) / 2;
      if (p.tiles[middle] <= tile) value = middle; else above = middle;
    }
    const i64 m0 = (i64)p.begins[value] + (i64)(tile - p.tiles[value]) * BM, rows = p.begins[value + 1];
    if (value == p.values) ok = false;
#else
    const Work batch = work / (tiles_m * tiles_n), in_batch = work % (tiles_m * tiles_n);
    const i64 m0 = (i64)(in_batch / tiles_n) * BM, n0 = (i64)(in_batch % tiles_n) * BN, rows = p.rows;
#endif
    OFFSETS_OF_BATCH
    const bool batch_ok = ok;
    __syncthreads();
    for (int i = threadIdx.x; i < BM; i += THREADS) {
      i64 m = m0 + i;
      bool ok = batch_ok && m < rows;
      i64 at = MISSED, out = MISSED;
      if (m < rows) {
#if SORTED
        m = p.order[m];
#endif
        OFFSETS_OF_ROW
      }
      s.first_at[i] = at; s.out_m[i] = out;
    }
    for (int i = threadIdx.x; i < BN; i += THREADS) {
      const i64 n = n0 + i;
      bool ok = batch_ok && n < p.columns;
      i64 at = MISSED, out = MISSED;
      if (n < p.columns) { OFFSETS_OF_COLUMN }
      s.second_at[i] = at; s.out_n[i] = out;
    }
