/* SPDX-License-Identifier: Apache-2.0
 * lstm_resident_back.cu - the steps of the backward of a low-rank LSTM in one launch, where the recurrent factors of a layer fit one
 * multiprocessor; see lstm_resident.cu. What is left for large products is written on the way: da and dp of every row.
 *
 * A thread is a gate of a unit, and again a part of a row of u^T:
 *
 *   da             four neighbours hand each other their gates and form the gradient of the cell
 *   dp = u^T da    16 lanes share a row of u^T, KEPT numbers of each lane in registers and the others in shared memory
 *   dh = v^T dp    four neighbours share a unit
 *
 * Gates, c and dy are asked for one step ahead. */
#include "core/numbers.h"
#include "lowrank/lstm_steps.h"

enum { MOST_THREADS = 1024, KEPT = 18, LANES = 16, MOST_SAMPLES = 2 };

/* Rows of v in shared memory: four rows of which 32 lanes read 8 units each lie in different banks. */
static __device__ __host__ inline int v_stride(int64_t hidden) { return ((int)hidden + 31) / 32 * 32 + 8; }

/* Numbers of a lane's part of a row of u^T that are in shared memory. */
static __device__ __host__ inline int rest_of(int64_t hidden) {
  const int part = 4 * (int)hidden / LANES;
  return part > KEPT ? part - KEPT : 0;
}

static int64_t shared_floats(int64_t hidden, int64_t rank, int64_t samples) {
  return rank * (v_stride(hidden) + rest_of(hidden) * LANES) + samples * (4 * hidden + rank);
}

struct block_memory {
  float *v, *u, *da, *dp; /* (rank, v_stride), (rest, 16 rank), (samples, 4 hidden), (samples, rank) */
};

static __device__ inline struct block_memory cut(float *shared, int64_t hidden, int64_t rank, int samples) {
  struct block_memory m;
  m.v = shared;
  m.u = m.v + rank * v_stride(hidden);
  m.da = m.u + rest_of(hidden) * LANES * rank;
  m.dp = m.da + 4 * hidden * samples;
  return m;
}

static __device__ inline int gate_row(int64_t hidden) { return (int)threadIdx.x % 4 * (int)hidden + (int)threadIdx.x / 4; }

static __device__ inline float element(const float *data, int64_t at) { return data ? data[at] : 0.f; }

static __device__ inline int64_t sample_of(int samples, int s) { return (int64_t)blockIdx.x * samples + s; }

/* Row of u^T of this thread, and its first element there. */
static __device__ inline void load(const struct lath_cuda_lstm_resident_back *g, const struct block_memory *m, float *u) {
  const int hidden = (int)g->hidden, rank = (int)g->rank, threads = 4 * hidden;
  const int j = (int)threadIdx.x / LANES, lane = (int)threadIdx.x % LANES;
  for (int e = (int)threadIdx.x; e < rank * hidden; e += threads) m->v[e / hidden * v_stride(hidden) + e % hidden] = g->v[e];
#pragma unroll
  for (int i = 0; i < KEPT; i++) {
    const int row = lane + LANES * i;
    u[i] = j < rank && row < threads ? g->u[(int64_t)row * rank + j] : 0.f;
  }
  for (int i = 0; i < rest_of(hidden) && j < rank; i++)
    m->u[i * LANES * rank + (int)threadIdx.x] = g->u[(int64_t)(lane + LANES * (KEPT + i)) * rank + j];
}

/* What a step needs of the forward, of one sample: the gate of this thread, c after and before it, dy. */
struct kept {
  float gate, c_before, dy;
};

static __device__ inline struct kept ask(const struct lath_cuda_lstm_resident_back *g, int t, int64_t sample) {
  struct kept kept = {0.f, 0.f, 0.f};
  if (t < 0 || t >= g->steps || sample >= g->batch) return kept;
  const int unit = (int)threadIdx.x / 4, before = g->reverse ? t + 1 : t - 1;
  const bool inside = before >= 0 && before < g->steps;
  kept.gate = g->gates[(t * g->batch + sample) * 4 * g->hidden + gate_row(g->hidden)];
  kept.c_before =
      inside ? g->c[(before * g->batch + sample) * g->hidden + unit] : element(g->c_first, sample * g->hidden + unit);
  kept.dy = element(g->dy, t * g->s_dy_step + sample * g->s_dy_row + unit);
  return kept;
}

/* sigmoid, or tanh of the third gate. */
static __device__ inline float activate(float x) {
  const bool is_g = threadIdx.x % 4 == 2;
  const float t = tanhf(is_g ? x : 0.5f * x);
  return is_g ? t : 0.5f * t + 0.5f;
}

/* The gradient of the gate of this thread; dc becomes that of the step before. */
static __device__ inline float cell_back(const struct kept *kept, float gate, float c, float dh, float *dc) {
  const int lane = (int)threadIdx.x % 32, first = lane - lane % 4, mine = lane % 4;
  const float i = __shfl_sync(0xffffffffu, gate, first), f = __shfl_sync(0xffffffffu, gate, first + 1);
  const float n = __shfl_sync(0xffffffffu, gate, first + 2), o = __shfl_sync(0xffffffffu, gate, first + 3);
  const float tanh_c = tanhf(c), of_h = dh + kept->dy, of_c = *dc + of_h * o * (1.f - tanh_c * tanh_c);
  *dc = of_c * f;
  /* da = outer * other * the derivative of the activation */
  const float outer = mine == 3 ? of_h : of_c;
  const float other = mine == 0 ? n : mine == 1 ? kept->c_before : mine == 2 ? i : tanh_c;
  return outer * other * (mine == 2 ? 1.f - n * n : gate * (1.f - gate));
}

template <int SAMPLES>
static __device__ inline void project(const struct lath_cuda_lstm_resident_back *g, const struct block_memory *m,
                                      const float *u, int t) {
  const int rank = (int)g->rank, gates = 4 * (int)g->hidden, rest = rest_of(g->hidden);
  const int j = (int)threadIdx.x / LANES, lane = (int)threadIdx.x % LANES;
  float sum[SAMPLES] = {};
#pragma unroll
  for (int i = 0; i < KEPT; i++)
#pragma unroll
    for (int s = 0; s < SAMPLES; s++) sum[s] += LANES * i < gates ? u[i] * m->da[s * gates + lane + LANES * i] : 0.f;
  if (j < rank) {
#pragma unroll 2
    for (int i = 0; i < rest; i++) {
      const float weight = m->u[i * LANES * rank + (int)threadIdx.x];
#pragma unroll
      for (int s = 0; s < SAMPLES; s++) sum[s] += weight * m->da[s * gates + lane + LANES * (KEPT + i)];
    }
  }
#pragma unroll
  for (int s = 0; s < SAMPLES; s++) {
#pragma unroll
    for (int step = LANES / 2; step > 0; step /= 2) sum[s] += __shfl_xor_sync(0xffffffffu, sum[s], step);
    if (lane > 0 || j >= rank) continue;
    m->dp[s * rank + j] = sum[s];
    if (sample_of(SAMPLES, s) < g->batch) g->dp[(t * g->batch + sample_of(SAMPLES, s)) * g->s_p + j] = sum[s];
  }
}

template <int SAMPLES>
static __device__ inline void expand(const struct lath_cuda_lstm_resident_back *g, const struct block_memory *m, float *dh) {
  const int rank = (int)g->rank, stride = v_stride(g->hidden), unit = (int)threadIdx.x / 4;
#pragma unroll
  for (int s = 0; s < SAMPLES; s++) dh[s] = 0.f;
#pragma unroll 2
  for (int j = (int)threadIdx.x % 4; j < rank; j += 4) {
    const float weight = m->v[j * stride + unit];
#pragma unroll
    for (int s = 0; s < SAMPLES; s++) dh[s] += weight * m->dp[s * rank + j];
  }
#pragma unroll
  for (int s = 0; s < SAMPLES; s++) {
    dh[s] += __shfl_xor_sync(0xffffffffu, dh[s], 1);
    dh[s] += __shfl_xor_sync(0xffffffffu, dh[s], 2);
  }
}

/* launch: lstm_resident_back threads=1024 shared=dynamic (shared_floats) */
template <int SAMPLES>
static __global__ void __launch_bounds__(MOST_THREADS, 1) lstm_resident_back(struct lath_cuda_lstm_resident_back g) {
  LATH_DYNAMIC_SHARED(float, shared);
  const struct block_memory m = cut(shared, g.hidden, g.rank, SAMPLES);
  const int unit = (int)threadIdx.x / 4, row = gate_row(g.hidden), step = g.reverse ? 1 : -1, gates = 4 * (int)g.hidden;
  const float bias = g.activated ? 0.f : element(g.bias_in, row) + element(g.bias, row);
  int t = g.reverse ? 0 : (int)g.steps - 1;
  float u[KEPT], dh[SAMPLES], dc[SAMPLES], c[SAMPLES];
  struct kept kept[SAMPLES];
  load(&g, &m, u);
#pragma unroll
  for (int s = 0; s < SAMPLES; s++) {
    const int64_t sample = sample_of(SAMPLES, s), at = sample * g.hidden + unit;
    const bool real = sample < g.batch;
    dh[s] = real ? element(g.dh_in, at) : 0.f, dc[s] = real ? element(g.dc_in, at) : 0.f;
    c[s] = real ? g.c[t * g.batch * g.hidden + at] : 0.f;
    kept[s] = ask(&g, t, sample);
  }
  for (int left = (int)g.steps; left > 0; left--, t += step) {
#pragma unroll
    for (int s = 0; s < SAMPLES; s++) {
      const int64_t sample = sample_of(SAMPLES, s);
      const float gate = g.activated ? kept[s].gate : activate(kept[s].gate + bias);
      const float da = cell_back(&kept[s], gate, c[s], dh[s], &dc[s]);
      m.da[s * gates + row] = da;
      if (sample < g.batch) g.da[(t * g.batch + sample) * gates + row] = da;
      c[s] = kept[s].c_before;
      kept[s] = ask(&g, t + step, sample);
    }
    __syncthreads();
    project<SAMPLES>(&g, &m, u, t);
    __syncthreads();
    expand<SAMPLES>(&g, &m, dh);
  }
#pragma unroll
  for (int s = 0; s < SAMPLES; s++) {
    const int64_t sample = sample_of(SAMPLES, s), at = sample * g.hidden + unit;
    if (sample >= g.batch || threadIdx.x % 4) continue;
    if (g.dh_out) g.dh_out[at] = dh[s];
    if (g.dc_out) g.dc_out[at] = dc[s];
  }
}

/* ---- launch ---------------------------------------------------------------------------------------------------------------- */

extern "C" int lath_cuda_lstm_samples_resident_back(int64_t hidden, int64_t rank, int64_t batch,
                                                    const struct lath_device *device) {
  const int samples = batch > device->multiprocessors ? MOST_SAMPLES : 1;
  if (hidden % 8 || 4 * hidden > MOST_THREADS || rank * LANES > 4 * hidden) return 0;
  return shared_floats(hidden, rank, samples) * (int64_t)sizeof(float) <= device->shared_bytes ? samples : 0;
}

template <int SAMPLES>
static cudaError_t launch(const struct lath_cuda_lstm_resident_back *g, int ordinal, const struct lath_device *device,
                          void *stream) {
  static int allowed[LATH_MAX_DEVICES];
  const int error = lath_device_allow_shared(reinterpret_cast<const void *>(&lstm_resident_back<SAMPLES>), device->shared_bytes,
                                             ordinal, allowed);
  if (error) return (cudaError_t)error;
  const size_t bytes = (size_t)shared_floats(g->hidden, g->rank, SAMPLES) * sizeof(float);
  LATH_LAUNCH((lstm_resident_back<SAMPLES>), dim3((unsigned)lath_blocks(g->batch, SAMPLES)), dim3((unsigned)(4 * g->hidden)),
              bytes, stream, *g);
  return cudaGetLastError();
}

extern "C" int lath_cuda_lstm_run_resident_back(const struct lath_cuda_lstm_resident_back *g, int samples, int ordinal,
                                                const struct lath_device *device, void *stream) {
  if (g->batch == 0 || g->steps == 0) return cudaSuccess;
  if (g->batch > INT32_MAX) return cudaErrorInvalidValue;
  return samples == 1 ? launch<1>(g, ordinal, device, stream) : launch<2>(g, ordinal, device, stream);
}
