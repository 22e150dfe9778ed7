/* SPDX-License-Identifier: Apache-2.0
 * lstm_plan.c - how a low-rank LSTM is carried out: which factors are merged, and the steps of a sequence. */
#include "core/check.h"
#include "lowrank/lstm_steps.h"
#include "lowrank/routes.h"

/* Estimates, per nanosecond and multiprocessor; docs/cuda.md says where they are from. */
#define LAUNCH_NS 2200.0
#define L2_BYTES 40.0
#define STEP_OPERATIONS 250.0
#define LIBRARY_OPERATIONS 380.0
#define TILE_SAMPLES 16

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
                                                 int back) {
  struct lath_cuda_lstm_chunk chunk = {.from = first};
  for (struct lath_cuda_lstm_step s = first; s.rows > 0; s = back ? lath_cuda_lstm_before(a, s) : lath_cuda_lstm_after(a, s)) {
    if (chunk.steps > 0 && chunk.rows + s.rows > LATH_CUDA_LSTM_CHUNK) break;
    chunk.steps++;
    chunk.rows += s.rows;
    if (s.t < chunk.from.t) chunk.from = s;
  }
  return chunk;
}

int64_t lath_cuda_lstm_chunk_rows(const struct lath_lowrank_lstm *a) {
  const int64_t rows = lath_cuda_lstm_rows(a), least = a->batch > LATH_CUDA_LSTM_CHUNK ? a->batch : LATH_CUDA_LSTM_CHUNK;
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
  const double load = tiles * numbers * (double)lath_dtype_size(l->a->dtype) / L2_BYTES;
  return launches * LAUNCH_NS + (compute > load ? compute : load) / l->device.multiprocessors;
}

/* Merging saves a launch in each step, and costs a product per call. */
static int is_recurrent_factored(const struct lath_cuda_lstm *l) {
  const struct lath_lowrank_lstm *a = l->a;
  const double gates = (double)l->gates, hidden = (double)a->hidden, rank = (double)a->rank, steps = (double)a->steps;
  const double merge = LAUNCH_NS + 2.0 * gates * hidden * rank / (LIBRARY_OPERATIONS * l->device.multiprocessors);
  return steps * step_time(l, 2, rank * (gates + hidden)) <= merge + steps * step_time(l, 1, gates * hidden);
}

lath_status lath_cuda_lstm_plan(const struct lath_lowrank_lstm *a, const struct lath_cuda *cuda, struct lath_cuda_lstm *l) {
  *l = (struct lath_cuda_lstm){.a = a, .gates = 4 * a->hidden};
  if (lath_device(cuda->device, &l->device)) return LATH_DEVICE_FAILED;
  l->rows = lath_cuda_lstm_rows(a);
  l->chunk = lath_cuda_lstm_chunk_rows(a);
  l->s_h = lath_cuda_lstm_padded(a->hidden);
  l->s_p = lath_cuda_lstm_padded(a->rank);
  l->hidden = (struct lath_cuda_lstm_part){.from = a->hidden, .rank = a->rank, .v = a->v, .u = a->u};
  l->input = (struct lath_cuda_lstm_part){.from = a->in, .rank = a->in_rank, .v = a->v_in, .u = a->u_in};
  const int is_auto = a->association == LATH_AUTO, factored = a->association == LATH_FACTORED;
  l->hidden.factored = is_auto ? is_recurrent_factored(l) : factored;
  l->input.factored = a->in_rank > 0 && (is_auto ? is_input_factored(a, l->rows) : factored);
  return LATH_OK;
}
