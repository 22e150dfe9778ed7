/* SPDX-License-Identifier: Apache-2.0
 * lstm_resident.cu - all steps of a low-rank LSTM in one launch, where the recurrent factors of a layer fit one multiprocessor.
 *
 * Samples do not meet, so a block takes one or two of them through the whole sequence and waits for nobody: a step costs two
 * barriers of the block and no launch. A thread is a gate of a unit. Its row of u is in registers as far as column KEPT, the rest
 * of u and all of v are in shared memory; reading all of u from there would take longer than the multiply-adds.
 *
 *   p = v h        16 lanes share a row of v and fold by shuffles
 *   a = start + u p + biases, activated; four neighbours hand each other their gates, and all four of them form the cell
 *
 * What x adds to the gates, `start`, is asked for one step ahead. */
#include "core/numbers.h"
#include "lowrank/lstm_steps.h"

enum { MOST_THREADS = 1024, KEPT = 20, LANES = 16, MOST_SAMPLES = 2 };

/* Rows of v in shared memory: two rows that 32 lanes read at once lie in different banks. */
static __device__ __host__ inline int64_t v_stride(int64_t hidden) { return (hidden + 31) / 32 * 32 + LANES; }

static __device__ __host__ inline int64_t rest_of(int64_t rank) { return rank > KEPT ? rank - KEPT : 0; }

/* p is read up to column KEPT at least, 4 elements at a time. */
static __device__ __host__ inline int64_t p_stride(int64_t rank) { return KEPT + (rest_of(rank) + 3) / 4 * 4; }

static int64_t shared_floats(int64_t hidden, int64_t rank, int64_t samples) {
  return rank * v_stride(hidden) + rest_of(rank) * 4 * hidden + samples * (hidden + p_stride(rank));
}

struct block_memory {
  float *v, *u, *h, *p; /* (rank, v_stride), (rank - KEPT, 4 hidden), (samples, hidden), (samples, p_stride) */
};

static __device__ inline struct block_memory cut(float *shared, int64_t hidden, int64_t rank, int64_t samples) {
  struct block_memory m;
  m.v = shared;
  m.u = m.v + rank * v_stride(hidden);
  m.h = m.u + rest_of(rank) * 4 * hidden;
  m.p = m.h + samples * hidden;
  return m;
}

/* The row of w that a thread works with: gate threadIdx.x % 4 of unit threadIdx.x / 4. */
static __device__ inline int gate_row(int64_t hidden) { return (int)threadIdx.x % 4 * (int)hidden + (int)threadIdx.x / 4; }

static __device__ inline float element(const float *data, int64_t at) { return data ? data[at] : 0.f; }

template <int SAMPLES>
static __device__ inline void load(const struct lath_cuda_lstm_resident *g, const struct block_memory *m, float *u, float *c) {
  const int64_t threads = 4 * g->hidden, row = gate_row(g->hidden), first = (int64_t)blockIdx.x * SAMPLES;
  for (int64_t e = threadIdx.x; e < g->rank * g->hidden; e += threads)
    m->v[e / g->hidden * v_stride(g->hidden) + e % g->hidden] = g->v[e];
#pragma unroll
  for (int j = 0; j < KEPT; j++) u[j] = j < g->rank ? g->u[row * g->rank + j] : 0.f;
  for (int64_t j = KEPT; j < g->rank; j++) m->u[(j - KEPT) * threads + threadIdx.x] = g->u[row * g->rank + j];
  for (int64_t e = threadIdx.x; e < SAMPLES * p_stride(g->rank); e += threads) m->p[e] = 0.f;
#pragma unroll
  for (int s = 0; s < SAMPLES; s++) {
    const int64_t sample = first + s < g->batch ? first + s : g->batch - 1, unit = threadIdx.x / 4;
    if (threadIdx.x % 4 == 0) m->h[s * g->hidden + unit] = g->h[sample * g->s_h + unit];
    c[s] = g->c[sample * g->hidden + unit];
  }
}

/* p = v h, of all samples of the block. */
template <int SAMPLES>
static __device__ inline void project(const struct lath_cuda_lstm_resident *g, const struct block_memory *m) {
  const int hidden = (int)g->hidden, rank = (int)g->rank, groups = 4 * hidden / LANES;
  const int group = (int)threadIdx.x / LANES, lane = (int)threadIdx.x % LANES;
  for (int from = 0; from < rank; from += groups) {
    const int j = from + group;
    const float *v = m->v + (j < rank ? j : rank - 1) * (int)v_stride(hidden);
    float sum[SAMPLES] = {};
#pragma unroll 4
    for (int k = lane; k < hidden; k += LANES) {
      const float weight = v[k];
#pragma unroll
      for (int s = 0; s < SAMPLES; s++) sum[s] += weight * m->h[s * hidden + k];
    }
#pragma unroll
    for (int s = 0; s < SAMPLES; s++) {
#pragma unroll
      for (int step = LANES / 2; step > 0; step /= 2) sum[s] += __shfl_xor_sync(0xffffffffu, sum[s], step);
      if (lane == 0 && j < rank) m->p[s * (int)p_stride(rank) + j] = sum[s];
    }
  }
}

/* a += u p */
template <int SAMPLES>
static __device__ inline void add_gates(const struct lath_cuda_lstm_resident *g, const struct block_memory *m, const float *u,
                                        float *a) {
  const int threads = (int)(4 * g->hidden), stride = (int)p_stride(g->rank), rest = (int)rest_of(g->rank);
#pragma unroll
  for (int j = 0; j < KEPT; j += 4)
#pragma unroll
    for (int s = 0; s < SAMPLES; s++) {
      float p[4];
      lath_load_16(p, m->p + s * stride + j);
#pragma unroll
      for (int i = 0; i < 4; i++) a[s] += u[j + i] * p[i];
    }
#pragma unroll 4
  for (int j = 0; j < rest; j++) {
    const float weight = m->u[j * threads + (int)threadIdx.x];
#pragma unroll
    for (int s = 0; s < SAMPLES; s++) a[s] += weight * m->p[s * stride + KEPT + j];
  }
}

/* sigmoid, or tanh of the third gate; lanes of a warp go the same way. sigmoid(x) = (1 + tanh(x / 2)) / 2 */
static __device__ inline float activate(float x) {
  const bool is_g = threadIdx.x % 4 == 2;
  const float t = tanhf(is_g ? x : 0.5f * x);
  return is_g ? t : 0.5f * t + 0.5f;
}

struct row {
  int64_t y, kept; /* element of y; number of the row in what is kept */
};

/* The cell of one sample, from the gate of this thread; h of the unit. */
static __device__ inline float run_cell(const struct lath_cuda_lstm_resident *g, float gate, float *c, bool writes,
                                        const struct row *row) {
  const int lane = (int)threadIdx.x % 32, first = lane - lane % 4, unit = (int)threadIdx.x / 4;
  const float i = __shfl_sync(0xffffffffu, gate, first), f = __shfl_sync(0xffffffffu, gate, first + 1);
  const float n = __shfl_sync(0xffffffffu, gate, first + 2), o = __shfl_sync(0xffffffffu, gate, first + 3);
  *c = f * *c + i * n;
  const float h = o * tanhf(*c);
  if (!writes) return h;
  if (g->gates) g->gates[row->kept * 4 * g->hidden + gate_row(g->hidden)] = gate;
  if (g->y && lane % 4 == 0) g->y[row->y + unit] = h;
  if (g->c_kept && lane % 4 == 1) g->c_kept[row->kept * g->hidden + unit] = *c;
  return h;
}

template <int SAMPLES>
static __device__ inline void ask_ahead(const struct lath_cuda_lstm_resident *g, int t, float *start) {
#pragma unroll
  for (int s = 0; s < SAMPLES; s++) {
    const int64_t sample = (int64_t)blockIdx.x * SAMPLES + s;
    if (t < 0 || t >= g->steps || sample >= g->batch) continue;
    start[s] = g->start[(t * g->batch + sample) * 4 * g->hidden + gate_row(g->hidden)];
  }
}

/* launch: lstm_resident threads=1024 shared=dynamic (shared_floats) */
template <int SAMPLES>
static __global__ void __launch_bounds__(MOST_THREADS, 1) lstm_resident(struct lath_cuda_lstm_resident g) {
  LATH_DYNAMIC_SHARED(float, shared);
  const struct block_memory m = cut(shared, g.hidden, g.rank, SAMPLES);
  const int unit = (int)threadIdx.x / 4, row = gate_row(g.hidden), step = g.reverse ? -1 : 1;
  const float bias = element(g.bias_in, row) + element(g.bias, row);
  float u[KEPT], c[SAMPLES], start[SAMPLES] = {};
  load<SAMPLES>(&g, &m, u, c);
  int t = g.reverse ? (int)g.steps - 1 : 0;
  ask_ahead<SAMPLES>(&g, t, start);
  __syncthreads();
  for (int left = (int)g.steps; left > 0; left--, t += step) {
    float a[SAMPLES];
    project<SAMPLES>(&g, &m);
#pragma unroll
    for (int s = 0; s < SAMPLES; s++) a[s] = start[s] + bias;
    ask_ahead<SAMPLES>(&g, t + step, start);
    __syncthreads();
    add_gates<SAMPLES>(&g, &m, u, a);
#pragma unroll
    for (int s = 0; s < SAMPLES; s++) {
      const int64_t sample = (int64_t)blockIdx.x * SAMPLES + s;
      const struct row at = {t * g.s_y_step + sample * g.s_y_row, t * g.batch + sample};
      const float h = run_cell(&g, activate(a[s]), &c[s], sample < g.batch, &at);
      if (threadIdx.x % 4 == 0) m.h[s * (int)g.hidden + unit] = h;
    }
    __syncthreads();
  }
#pragma unroll
  for (int s = 0; s < SAMPLES; s++) {
    const int64_t sample = (int64_t)blockIdx.x * SAMPLES + s;
    if (sample >= g.batch || threadIdx.x % 4) continue;
    const float h = m.h[s * (int)g.hidden + unit];
    g.h[sample * g.s_h + unit] = h;
    g.c[sample * g.hidden + unit] = c[s];
    if (g.hn) g.hn[sample * g.hidden + unit] = h;
  }
}

/* ---- launch ---------------------------------------------------------------------------------------------------------------- */

extern "C" int lath_cuda_lstm_samples_resident(int64_t hidden, int64_t rank, int64_t batch, const struct lath_device *device) {
  const int samples = batch > device->multiprocessors ? MOST_SAMPLES : 1;
  if (hidden % 8 || 4 * hidden > MOST_THREADS) return 0;
  return shared_floats(hidden, rank, samples) * (int64_t)sizeof(float) <= device->shared_bytes ? samples : 0;
}

template <int SAMPLES>
static cudaError_t launch(const struct lath_cuda_lstm_resident *g, int ordinal, const struct lath_device *device,
                          void *stream) {
  static int allowed[LATH_MAX_DEVICES];
  const int error =
      lath_device_allow_shared(reinterpret_cast<const void *>(&lstm_resident<SAMPLES>), device->shared_bytes, ordinal, allowed);
  if (error) return (cudaError_t)error;
  const size_t bytes = (size_t)shared_floats(g->hidden, g->rank, SAMPLES) * sizeof(float);
  LATH_LAUNCH((lstm_resident<SAMPLES>), dim3((unsigned)lath_blocks(g->batch, SAMPLES)), dim3((unsigned)(4 * g->hidden)), bytes,
              stream, *g);
  return cudaGetLastError();
}

extern "C" int lath_cuda_lstm_run_resident(const struct lath_cuda_lstm_resident *g, int samples, int ordinal,
                                           const struct lath_device *device, void *stream) {
  if (g->batch == 0 || g->steps == 0) return cudaSuccess;
  if (g->batch > INT32_MAX) return cudaErrorInvalidValue;
  return samples == 1 ? launch<1>(g, ordinal, device, stream) : launch<2>(g, ordinal, device, stream);
}
