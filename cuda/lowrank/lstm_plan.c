/* SPDX-License-Identifier: Apache-2.0
 * lstm_plan.c - how a low-rank LSTM is carried out: which factors are merged, and the steps of a sequence. */
#include "core/check.h"
#include "gemm/times.h"
#include "lowrank/lstm_steps.h"
#include "lowrank/routes.h"

/* Estimates, per nanosecond and multiprocessor; docs/cuda.md says where they are from. */
#define STEP_OPERATIONS 250.0
#define LIBRARY_OPERATIONS 380.0
#define TILE_SAMPLES 16
#define RESIDENT_NS 400.0
#define RESIDENT_OPERATIONS 220.0

/* ---- steps --------------------------------------------------------------------------------------------------------------- */

int64_t lath_cuda_lstm_rows(const struct lath_lowrank_lstm *a) {
  int64_t rows = 0;
  if (!a->batch_sizes) return a->steps * a->batch;
  for (int64_t t = 0; t < a->steps; t++) rows += a->batch_sizes[t];
  return rows;
}

struct lath_cuda_lstm_step lath_cuda_lstm_first(const struct lath_lowrank_lstm *a, int last) {
  if (!a->reverse == !last) return lath_cuda_lstm_at(a, 0, 0);
  return lath_cuda_lstm_earlier(a, lath_cuda_lstm_at(a, a->steps, lath_cuda_lstm_rows(a)));
}

struct lath_cuda_lstm_chunk lath_cuda_lstm_chunk(const struct lath_lowrank_lstm *a, struct lath_cuda_lstm_step first,
                                                 int64_t most, int back) {
  struct lath_cuda_lstm_chunk chunk = {.from = first};
  for (struct lath_cuda_lstm_step s = first; s.rows > 0; s = back ? lath_cuda_lstm_before(a, s) : lath_cuda_lstm_after(a, s)) {
    if (chunk.steps > 0 && chunk.rows + s.rows > most) break;
    chunk.steps++;
    chunk.rows += s.rows;
    if (s.t < chunk.from.t) chunk.from = s;
  }
  return chunk;
}

int64_t lath_cuda_lstm_chunk_rows(const struct lath_lowrank_lstm *a, int64_t most) {
  const int64_t rows = lath_cuda_lstm_rows(a), least = a->batch > most ? a->batch : most;
  return rows < least ? rows : least;
}

/* ---- association --------------------------------------------------------------------------------------------------------- */

/* Of large products, as on the CPU: two after each other cost some 3 % more than one of as many multiply-adds. */
static int is_input_factored(const struct lath_lowrank_lstm *a, int64_t rows) {
  const double rank = (double)a->in_rank, gates = 4.0 * (double)a->hidden, in = (double)a->in;
  return 1.03 * (double)rows * rank * (in + gates) <= ((double)rows + rank) * gates * in;
}

/* Nanoseconds of a step whose launches read `numbers` of weights. */
static double step_time(const struct lath_cuda_lstm *l, int launches, double numbers) {
  const double batch = (double)l->a->batch, tiles = (double)lath_blocks(l->a->batch, TILE_SAMPLES);
  const double compute = 2.0 * batch * numbers / STEP_OPERATIONS;
  const double load = tiles * numbers * (double)lath_dtype_size(l->a->dtype) / LATH_CACHE_RATE;
  return launches * LATH_LAUNCH_NS + (compute > load ? compute : load) / l->device.multiprocessors;
}

/* Of all steps, through the factors or through their product. Merging saves a launch in each step, and costs a product per call. */
static double steps_time(const struct lath_cuda_lstm *l, int factored) {
  const struct lath_lowrank_lstm *a = l->a;
  const double gates = (double)l->gates, hidden = (double)a->hidden, rank = (double)a->rank, steps = (double)a->steps;
  if (factored) return steps * step_time(l, 2, rank * (gates + hidden));
  const double merge = LATH_LAUNCH_NS + 2.0 * gates * hidden * rank / (LIBRARY_OPERATIONS * l->device.multiprocessors);
  return merge + steps * step_time(l, 1, gates * hidden);
}

/* Of all steps in one launch: as many waves of blocks as the multiprocessors need, which hold one each. */
static double resident_time(const struct lath_cuda_lstm *l, int samples) {
  const struct lath_lowrank_lstm *a = l->a;
  const double waves = (double)lath_blocks(lath_blocks(a->batch, samples), l->device.multiprocessors);
  const double operations = 2.0 * samples * (double)a->rank * (double)(l->gates + a->hidden);
  return (double)a->steps * waves * (RESIDENT_NS + operations / RESIDENT_OPERATIONS);
}

/* Samples of a block that runs through all steps; 0 where that cannot be done, or takes longer. */
static int choose_resident(const struct lath_cuda_lstm *l, int backward) {
  const struct lath_lowrank_lstm *a = l->a;
  if (a->dtype != LATH_F32 || a->batch_sizes || a->association == LATH_MERGED || a->batch == 0) return 0;
  const int samples = backward ? lath_cuda_lstm_samples_resident_back(a->hidden, a->rank, a->batch, &l->device)
                               : lath_cuda_lstm_samples_resident(a->hidden, a->rank, a->batch, &l->device);
  const int forced = lath_cuda_forced_route();
  if (samples == 0 || forced == LATH_LOWRANK_FUSED) return samples;
  if (forced == LATH_LOWRANK_PRODUCTS) return 0;
  const double factored = steps_time(l, 1), merged = steps_time(l, 0);
  const double others = a->association == LATH_FACTORED || factored < merged ? factored : merged;
  return resident_time(l, samples) < others ? samples : 0;
}

lath_status lath_cuda_lstm_plan(const struct lath_lowrank_lstm *a, const struct lath_cuda *cuda, int backward,
                                struct lath_cuda_lstm *l) {
  *l = (struct lath_cuda_lstm){.a = a, .gates = 4 * a->hidden};
  if (lath_device(cuda->device, &l->device)) return LATH_DEVICE_FAILED;
  const int is_auto = a->association == LATH_AUTO, factored = a->association == LATH_FACTORED;
  l->rows = lath_cuda_lstm_rows(a);
  l->s_h = lath_cuda_lstm_padded(a->hidden);
  l->s_p = lath_cuda_lstm_padded(a->rank);
  l->hidden = (struct lath_cuda_lstm_part){.from = a->hidden, .rank = a->rank, .v = a->v, .u = a->u};
  l->input = (struct lath_cuda_lstm_part){.from = a->in, .rank = a->in_rank, .v = a->v_in, .u = a->u_in};
  l->resident = choose_resident(l, backward);
  l->hidden.factored = l->resident || (is_auto ? steps_time(l, 1) <= steps_time(l, 0) : factored);
  l->input.factored = a->in_rank > 0 && (is_auto ? is_input_factored(a, l->rows) : factored);
  l->most = l->resident ? LATH_CUDA_LSTM_LONG_CHUNK : LATH_CUDA_LSTM_CHUNK;
  l->chunk = lath_cuda_lstm_chunk_rows(a, l->most);
  return LATH_OK;
}
