// attention_nest: attention as written. A block takes what `own` counts, one after another of what `rest` counts, and BLOCK keys of
// a list at a time: a thread finds a key's score, then every thread goes over them in order.
// Stands behind numbers.cuh, the parameter, and functions that tell where things are: NAME_at (where the loops of depth and width are
// zero), NAME_row (how far these move it), NAME_split, NAME_count, range_of, is_seen.
// Defines: LOOPS, BIAS, BLOCK, T, A; WHAT (0 query, 1 key, 2 value, 3 bias) for a gradient, which is added to sums; SERIAL (a gradient
// is summed over depth or width too, so that one thread adds up all of it).
typedef Number<T> N;
constexpr i64 LEFT_OUT = -0x7fffffffffffffffll - 1;

__device__ __forceinline__ A low() { return -(A)1 / (A)0; }

// The score of a key.
__device__ __forceinline__ A score_of(const Params& p, i64* i, i64 query, i64 key) {
  A sum = 0;
  const i64 count = depth_count(p);
  for (i64 d = 0; d < count; d++) {
    depth_split(p, d, i);
    sum += N::widen(p.query[query + query_row(p, i)]) * N::widen(p.key[key + key_row(p, i)]);
  }
  if (count > 0) depth_split(p, 0, i);
  sum *= (A)p.scale;
#if BIAS
  i64 at, none;
  bias_at(p, i, at, none);
  sum += Number<Bias>::widen(p.bias[at]);
#endif
  return sum;
}

// Where key and value of the place kk of a list are; false where it is left out.
__device__ __forceinline__ bool find(const Params& p, i64* i, i64 kk, i64& key, i64& value) {
  keys_split(p, kk, i);
  i64 position = kk, none;
  return key_at(p, i, key, position) && is_seen(p, i, position) && value_at(p, i, value, none);
}

#ifndef WHAT
extern "C" __global__ void __launch_bounds__(BLOCK) attention_nest(const __grid_constant__ Params p) {
  __shared__ A scores[BLOCK];
  __shared__ i64 values[BLOCK];
  const i64 lists = own_count(p), width = width_count(p);
  for (i64 list = blockIdx.x; list < lists; list += gridDim.x) {
    i64 i[LOOPS] = {}, from, to, query, none;
    own_split(p, list, i);
    range_of(p, i, from, to);
    query_at(p, i, query, none);
    for (i64 w0 = 0; w0 < width || w0 == 0; w0 += BLOCK) {
      i64 j[LOOPS];
      for (int l = 0; l < LOOPS; l++) j[l] = i[l];
      const i64 w = w0 + threadIdx.x;
      const bool mine = w < width;
      if (mine) width_split(p, w, j);
      const i64 column = mine ? value_row(p, j) : 0;
      A high = low(), sum = 0, acc = 0;
      for (i64 k0 = from; k0 < to; k0 += BLOCK) {
        i64 key, value = -1;
        A score = low();
        const i64 kk = k0 + threadIdx.x;
        bool ok = kk < to;
        if (ok) {
          i64 x[LOOPS];
          for (int l = 0; l < LOOPS; l++) x[l] = i[l];
          ok = find(p, x, kk, key, value);
          if (ok) score = score_of(p, x, query, key);
        }
        __syncthreads();
        scores[threadIdx.x] = score;
        values[threadIdx.x] = ok ? value : LEFT_OUT;
        __syncthreads();
        const int count = to - k0 < BLOCK ? (int)(to - k0) : BLOCK;
        A top = high;
        for (int t = 0; t < count; t++) if (values[t] != LEFT_OUT && scores[t] > top) top = scores[t];
        const A base = top == low() ? (A)0 : top, factor = exp(high - base);
        high = top; sum *= factor; acc *= factor;
        for (int t = 0; t < count; t++)
          if (values[t] != LEFT_OUT) {
            const A weight = exp(scores[t] - base);
            sum += weight;
            if (mine) acc += weight * N::widen(p.value[values[t] + column]);
          }
      }
      if (mine) {
        i64 at;
        out_at(p, i, at, none);
        p.out[at + out_row(p, j)] = N::narrow(sum == 0 ? (A)0 : acc / sum);
      }
      if (w0 == 0 && threadIdx.x == 0 && p.lse) {
        i64 at;
        lse_at(p, i, at, none);
        p.lse[at] = sum == 0 ? low() : high + log(sum);
      }
    }
  }
}
#else
#if SERIAL
#define FIRST (threadIdx.x == 0 ? 0 : (i64)1 << 62)
#define STEP 1
#else
#define FIRST threadIdx.x
#define STEP BLOCK
#endif
extern "C" __global__ void __launch_bounds__(BLOCK) attention_nest(const __grid_constant__ Params p) {
  __shared__ A weights[BLOCK], parts[BLOCK];
  __shared__ i64 rows[BLOCK], places[BLOCK];
  const i64 owned = own_count(p), rest = rest_count(p), width = width_count(p), depth = depth_count(p);
  for (i64 own = blockIdx.x; own < owned; own += gridDim.x)
    for (i64 turn = 0; turn < rest; turn++) {
      i64 i[LOOPS] = {}, from, to, query, out, at, none;
      own_split(p, own, i);
      rest_split(p, turn, i);
      range_of(p, i, from, to);
      query_at(p, i, query, none);
      out_at(p, i, out, none);
      lse_at(p, i, at, none);
      const A lse = p.lse[at];
      if (lse == low()) continue;
      i64 j[LOOPS];
      for (int l = 0; l < LOOPS; l++) j[l] = i[l];
      A delta = 0;
      for (i64 w = threadIdx.x; w < width; w += BLOCK) {
        width_split(p, w, j);
        const i64 o = out + out_row(p, j);
        delta += N::widen(p.out[o]) * N::widen(p.grad_out[o]);
      }
      if (width > 0) width_split(p, 0, j);
      __syncthreads();
      parts[threadIdx.x] = delta;
      __syncthreads();
      delta = 0;
      for (int t = 0; t < BLOCK; t++) delta += parts[t];
      for (i64 k0 = from; k0 < to; k0 += BLOCK) {
        i64 key, value, place = 0;
        A weight = 0;
        const i64 kk = k0 + threadIdx.x;
        bool ok = kk < to;
        if (ok) {
          i64 x[LOOPS];
          for (int l = 0; l < LOOPS; l++) x[l] = i[l];
          ok = find(p, x, kk, key, value) && grad_at(p, x, place, none);
          if (ok) {
            weight = exp(score_of(p, x, query, key) - lse);
            if (WHAT != 2) {
              A slope = 0;
              for (i64 w = 0; w < width; w++) {
                width_split(p, w, x);
                slope += N::widen(p.grad_out[out + out_row(p, x)]) * N::widen(p.value[value + value_row(p, x)]);
              }
              weight *= slope - delta;
              if (WHAT < 2) weight *= (A)p.scale;
            }
          }
        }
        __syncthreads();
        weights[threadIdx.x] = weight;
        rows[threadIdx.x] = ok ? key : LEFT_OUT;
        places[threadIdx.x] = place;
        __syncthreads();
        const int count = to - k0 < BLOCK ? (int)(to - k0) : BLOCK;
        if (WHAT == 0)
          for (i64 d = FIRST; d < depth; d += STEP) {
            depth_split(p, d, j);
            const i64 column = key_row(p, j);
            i64 to_sum = LEFT_OUT;
            A sum = 0;
            for (int t = 0; t < count; t++)
              if (rows[t] != LEFT_OUT) { sum += weights[t] * N::widen(p.key[rows[t] + column]); to_sum = places[t]; }
            // Without a key the place is unknown, and that of another block.
            if (to_sum != LEFT_OUT) p.sums[to_sum + grad_row(p, j)] += sum;
          }
        if (WHAT == 1 || WHAT == 2) {
          const i64 columns = WHAT == 1 ? depth : width;
          for (i64 c = FIRST; c < columns; c += STEP) {
            if (WHAT == 1) depth_split(p, c, j);
            else width_split(p, c, j);
            const A x = WHAT == 1 ? N::widen(p.query[query + query_row(p, j)]) : N::widen(p.grad_out[out + out_row(p, j)]);
            const i64 column = grad_row(p, j);
            for (int t = 0; t < count; t++)
              if (rows[t] != LEFT_OUT) p.sums[places[t] + column] += weights[t] * x;
          }
        }
        if (WHAT == 3 && threadIdx.x == 0)
          for (int t = 0; t < count; t++)
            if (rows[t] != LEFT_OUT) p.sums[places[t]] += weights[t];
        if (depth > 0) depth_split(p, 0, j);
        if (width > 0) width_split(p, 0, j);
      }
    }
}
#endif
