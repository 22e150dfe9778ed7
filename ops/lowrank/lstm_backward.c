/* SPDX-License-Identifier: Apache-2.0
 * lstm_backward.c - the gradients of a low-rank LSTM, from h and c of every row.
 *
 * Nothing but h and c is kept from the forward: all h are known, so the gates of a *chunk* of steps are formed again as one product. Then
 * step by step, backwards:
 *
 *   da                         gradients of the gates before their activation, from the gates, c and the gradients of h and c
 *   [dr | ds] = da w           gradients of [r | s]
 *   dh = dr v                  of the step before; dr itself where the weight is merged
 *
 * and per chunk, as products over all of its rows, dw += da^T [r | s], dv += dr^T h_before, dv_in += ds^T x.
 *
 * Threads share the rows of a chunk on the way back through its steps, meet, and share the rows of the sums. So each element of a sum
 * is one chain over all rows in their order, and results do not depend on the number of threads. */
#include <string.h>

#include "core/check.h"
#include "core/host.h"
#include "lowrank/lstm.h"

#define BLOCK_ROWS 128  /* of the batch, that run through all steps together */
#define CHUNK_ROWS 128  /* of a chunk, in whole steps, for each thread: products over few rows spend their time on their sums */
#define CHUNK_WORKERS 4 /* ... up to so many, for a chunk has to stay in cache */
#define ROWS_PER_WORKER 8 /* at least: with fewer a thread mostly reads weights */

/* A pair of factors that was merged: from dw, the gradient of the dense weight, to theirs. */
struct unmerge {
  float *dw; /* (4 hidden, from) */
  struct lath_gemm u, v;
};

/* Samples [b, b + m) at step t, whose rows begin at number `row`; in the buffers of the chunk from row `at` on. */
struct step {
  int64_t t, row, b, m, at;
};

struct backward {
  const struct lath_lowrank_lstm *a;
  const struct lath_host *host;
  struct lath_lstm_weights w;
  int64_t blocks, block_rows, chunk, workers; /* blocks of rows; rows of the largest; steps in a chunk */
  struct lath_panels back, v_back, v_in_back; /* of w, v, v_in: for da w, dr v, ds v_in */
  float *dw, *d_bias, *dv, *dv_in;            /* sums: (gates, columns), (gates), (rank, hidden), (in_rank, in) */
  int64_t dw_size, dv_size, dv_in_size;
  float *dh, *dc;                           /* (batch, hidden): of the state */
  float *rows, *d_rows, *gates, *h, *c, *x; /* of the chunk: [r | s] and its gradient, gates, h and c before, x */
  int64_t s_gates;                          /* between rows of gates: not a power of two, for they are read across too */
  float *packed, *dh_step, *scratch;        /* per worker */
  int64_t packed_size, dh_size, scratch_size;
  struct unmerge hidden, input;
  int64_t from, to, rows_now, steps_now; /* samples, rows and steps of the chunk at hand */
  struct step steps[CHUNK_ROWS];
};

/* ---- sizes ------------------------------------------------------------------------------------------------------------------------------- */

static void set_blocks(struct backward *b) {
  const struct lath_lowrank_lstm *a = b->a;
  const int64_t workers = lath_host_workers(b->host, a->steps * a->batch * b->w.gates * b->w.columns);
  b->blocks = lath_larger(1, lath_ceil_div(a->batch, BLOCK_ROWS));
  b->block_rows = lath_larger(1, lath_ceil_div(a->batch, b->blocks));
  b->workers = lath_smaller(workers, lath_ceil_div(b->block_rows, ROWS_PER_WORKER));
  b->chunk = CHUNK_ROWS * lath_smaller(b->workers, CHUNK_WORKERS) / b->block_rows;
  b->chunk = lath_larger(1, lath_smaller(lath_smaller(b->chunk, CHUNK_ROWS), a->steps));
}

static void take_unmerge(struct unmerge *m, const struct lath_lstm_part *p, int64_t gates, const struct lath_host *host,
                         struct lath_arena *arena) {
  if (!lath_lstm_is_merged(p)) return;
  m->dw = lath_take(arena, gates, p->from);
  m->u = (struct lath_gemm){.m = gates, .n = p->rank, .k = p->from, .b_transposed = 1};
  m->v = (struct lath_gemm){.m = p->rank, .n = p->from, .k = gates, .a_order = LATH_A_COLUMNS};
  struct lath_arena one = *arena, other = *arena;
  lath_gemm_take(&m->u, host, &one);
  lath_gemm_take(&m->v, host, &other);
  lath_arena_cover(arena, &one);
  lath_arena_cover(arena, &other);
}

static void take_sums(struct backward *b, struct lath_arena *arena) {
  const struct lath_lstm_weights *w = &b->w;
  b->dw_size = w->gates * w->columns;
  b->dv_size = w->hidden.factored ? w->hidden.rank * w->hidden.from : 0;
  b->dv_in_size = w->input.factored ? w->input.rank * w->input.from : 0;
  b->dw = lath_take(arena, 1, b->dw_size);
  b->d_bias = lath_take(arena, 1, w->gates);
  b->dv = lath_take(arena, 1, b->dv_size);
  b->dv_in = lath_take(arena, 1, b->dv_in_size);
}

/* At least the numbers in a row of packed panels of n columns: the last panel may be wider than what is left for it. */
static int64_t panels_columns(const struct backward *b, int64_t n) { return n + LATH_MAX_VECS * b->w.kernels->lanes; }

static void take_buffers(struct backward *b, struct lath_arena *arena) {
  const int64_t rows = b->chunk * b->block_rows;
  b->s_gates = b->w.gates + LATH_CACHE_LINE / (int64_t)sizeof(float);
  b->rows = lath_take(arena, rows, b->w.s_rows);
  b->d_rows = lath_take(arena, rows, b->w.s_rows);
  b->gates = lath_take(arena, rows, b->s_gates);
  b->h = lath_take(arena, rows, b->a->hidden);
  b->c = lath_take(arena, rows, b->a->hidden);
  b->x = lath_take(arena, rows, b->a->in);
  b->packed_size = rows * panels_columns(b, lath_larger(b->w.columns, lath_larger(b->a->hidden, b->a->in)));
  b->dh_size = b->block_rows * b->a->hidden;
  b->scratch_size = lath_product_scratch(b->w.kernels);
  b->packed = lath_take(arena, b->workers, b->packed_size);
  b->dh_step = lath_take(arena, b->workers, b->dh_size);
  b->scratch = lath_take(arena, b->workers, b->scratch_size);
}

static void take(struct backward *b, const struct lath_lowrank_lstm *a, const struct lath_host *host,
                 struct lath_arena *arena) {
  struct lath_lstm_weights *w = &b->w;
  b->a = a;
  b->host = host;
  lath_lstm_weights_take(w, a, !a->gates, host, arena);
  set_blocks(b);
  b->back = lath_panels_take(w->kernels, arena, a->batch, w->columns, w->gates);
  if (w->hidden.factored) b->v_back = lath_panels_take(w->kernels, arena, a->batch, a->hidden, a->rank);
  if (w->input.factored) b->v_in_back = lath_panels_take(w->kernels, arena, a->batch, a->in, a->in_rank);
  take_sums(b, arena);
  b->dh = a->dh0 ? a->dh0 : lath_take(arena, a->batch, a->hidden);
  b->dc = a->dc0 ? a->dc0 : lath_take(arena, a->batch, a->hidden);
  take_buffers(b, arena);
  take_unmerge(&b->hidden, &w->hidden, 4 * a->hidden, host, arena);
  take_unmerge(&b->input, &w->input, 4 * a->hidden, host, arena);
}

/* ---- back through the steps of a chunk ---------------------------------------------------------------------------------------------------- */

/* A thread with its samples. */
struct worker {
  const struct backward *b;
  int64_t number, from, to;
  float *packed, *dh_step, *scratch;
};

static struct worker worker_of(const struct backward *b, int64_t number) {
  const int64_t samples = b->to - b->from;
  return (struct worker){.b = b,
                         .number = number,
                         .from = b->from + samples * number / b->workers,
                         .to = b->from + samples * (number + 1) / b->workers,
                         .packed = b->packed + number * b->packed_size,
                         .dh_step = b->dh_step + number * b->dh_size,
                         .scratch = b->scratch + number * b->scratch_size};
}

/* The part of a step that is the worker's. */
static struct step part_of(const struct worker *k, const struct step *all) {
  struct step s = *all;
  s.b = k->from;
  s.m = lath_larger(0, lath_smaller(k->to, all->b + all->m) - k->from);
  s.at = all->at + k->from - all->b;
  return s;
}

static void copy_rows(int64_t m, int64_t n, const float *from, int64_t s_from, float *to, int64_t s_to) {
  for (int64_t r = 0; r < m; r++) memcpy(to + r * s_to, from + r * s_from, (size_t)n * sizeof(float));
}

/* h and c before the step, and x. Samples that begin with this step have their initial state. */
static void gather_step(const struct worker *k, const struct step *s) {
  const struct lath_lowrank_lstm *a = k->b->a;
  const int64_t h = a->hidden, t = a->reverse ? s->t + 1 : s->t - 1;
  const int64_t before = t >= 0 && t < a->steps ? lath_lstm_rows(a, t) : 0;
  const int64_t row = a->reverse ? s->row + lath_lstm_rows(a, s->t) : s->row - before;
  const int64_t old = lath_larger(0, lath_smaller(s->m, before - s->b));
  float *to_h = k->b->h + s->at * h, *to_c = k->b->c + s->at * h;
  if (old > 0) {
    const float *y = (const float *)a->y + lath_lstm_at(a, t, row, a->s_y_step, a->s_y_row) + s->b * a->s_y_row;
    copy_rows(old, h, y, a->s_y_row, to_h, h);
    memcpy(to_c, (const float *)a->c + (row + s->b) * h, (size_t)(old * h) * sizeof(float));
  }
  lath_lstm_state(a->h0, s->b + old, s->m - old, h, to_h + old * h);
  lath_lstm_state(a->c0, s->b + old, s->m - old, h, to_c + old * h);
  if (a->in > 0)
    copy_rows(s->m, a->in, (const float *)a->x + lath_lstm_x_at(a, s->t, s->row, s->b), a->s_x_row, k->b->x + s->at * a->in,
              a->in);
}

/* [r | s] of rows [at, at + rows) of the chunk and, if they were not kept, their gates. */
static void form_gates(const struct worker *k, int64_t at, int64_t rows) {
  const struct backward *b = k->b;
  const struct lath_lstm_weights *w = &b->w;
  float *r = b->rows + at * w->s_rows, *gates = b->gates + at * b->s_gates;
  lath_lstm_part_fill(w, &w->hidden, rows, b->h + at * b->a->hidden, b->a->hidden, r, k->scratch);
  lath_lstm_part_fill(w, &w->input, rows, b->x + at * b->a->in, b->a->in, r, k->scratch);
  if (b->a->gates) return;
  const struct lath_product product = {.m = rows,
                                       .a = r,
                                       .s_a = w->s_rows,
                                       .b = &w->panels,
                                       .bias = w->bias,
                                       .c = gates,
                                       .s_c = b->s_gates,
                                       .scratch = k->scratch};
  lath_multiply(w->kernels, &product);
  w->kernels->lstm_gates(rows, b->a->hidden, gates, b->s_gates);
}

/* dh_step = what later steps and y itself ask of h. */
static void form_dh(const struct worker *k, const struct step *s) {
  const struct lath_lowrank_lstm *a = k->b->a;
  const int64_t h = a->hidden;
  memcpy(k->dh_step, k->b->dh + s->b * h, (size_t)(s->m * h) * sizeof(float));
  if (!a->dy) return;
  const float *dy = (const float *)a->dy + lath_lstm_at(a, s->t, s->row, a->s_dy_step, a->s_dy_row) + s->b * a->s_dy_row;
  for (int64_t r = 0; r < s->m; r++) k->b->w.kernels->add_rows(1, h, dy + r * a->s_dy_row, h, k->dh_step + r * h);
}

static void multiply(const struct worker *k, int64_t m, const float *from, int64_t s_from, const struct lath_panels *by,
                     float *to, int64_t s_to) {
  const struct lath_product product = {.m = m, .a = from, .s_a = s_from, .b = by, .c = to, .s_c = s_to, .scratch = k->scratch};
  lath_multiply(k->b->w.kernels, &product);
}

/* From the gates of a step to da in their place, and on to [dr | ds] and the gradient of the h before. */
static void step_back(const struct worker *k, const struct step *s) {
  const struct backward *b = k->b;
  const struct lath_lstm_weights *w = &b->w;
  const int64_t h = b->a->hidden, lanes = w->kernels->lanes;
  float *d_gates = b->gates + s->at * b->s_gates, *d_rows = b->d_rows + s->at * w->s_rows, *dh = b->dh + s->b * h;
  const float *kept = b->a->gates ? (const float *)b->a->gates + (s->row + s->b) * 4 * h : NULL;
  form_dh(k, s);
  const struct lath_lstm_cells_back cells = {.gates = kept ? kept : d_gates,
                                             .s_gates = kept ? 4 * h : b->s_gates,
                                             .s_group = kept ? lanes : 4 * lanes,
                                             .s_gate = kept ? h : lanes,
                                             .dh = k->dh_step,
                                             .c = (const float *)b->a->c + (s->row + s->b) * h,
                                             .c_before = b->c + s->at * h,
                                             .s_dh = h,
                                             .s_c = h,
                                             .s_c_before = h,
                                             .dc = b->dc + s->b * h,
                                             .s_dc = h};
  w->kernels->lstm_cells_back(s->m, h, &cells, d_gates, b->s_gates);
  multiply(k, s->m, d_gates, b->s_gates, &b->back, d_rows, w->s_rows);
  if (w->hidden.factored)
    multiply(k, s->m, d_rows, w->s_rows, &b->v_back, dh, h);
  else
    copy_rows(s->m, h, d_rows, w->s_rows, dh, h);
}

static void write_dx(const struct worker *k, const struct step *s) {
  const struct lath_lowrank_lstm *a = k->b->a;
  const struct lath_lstm_weights *w = &k->b->w;
  const float *ds = k->b->d_rows + s->at * w->s_rows + w->input.column;
  float *dx = (float *)a->dx + lath_lstm_at(a, s->t, s->row, a->s_dx_step, a->s_dx_row) + s->b * a->s_dx_row;
  if (w->input.factored)
    multiply(k, s->m, ds, w->s_rows, &k->b->v_in_back, dx, a->s_dx_row);
  else
    copy_rows(s->m, a->in, ds, w->s_rows, dx, a->s_dx_row);
}

static void go_back(const struct worker *k) {
  const struct backward *b = k->b;
  struct step steps[CHUNK_ROWS];
  for (int64_t i = 0; i < b->steps_now; i++) {
    steps[i] = part_of(k, &b->steps[i]);
    gather_step(k, &steps[i]);
    if (b->workers > 1) form_gates(k, steps[i].at, steps[i].m);
  }
  if (b->workers == 1) form_gates(k, 0, b->rows_now); /* of all steps at once */
  for (int64_t i = 0; i < b->steps_now; i++) step_back(k, &steps[i]);
  for (int64_t i = 0; b->a->dx && i < b->steps_now; i++) write_dx(k, &steps[i]);
}

static void share_samples(void *arg, int64_t begin, int64_t end) {
  for (int64_t number = begin; number < end; number++) {
    const struct worker k = worker_of(arg, number);
    go_back(&k);
  }
}

/* ---- the sums over the rows of a chunk ------------------------------------------------------------------------------------------------------ */

/* Rows of sums (m, n) that are the worker's: += a^T b. */
static void add_product(const struct worker *k, int64_t m, const float *a, int64_t s_a, int64_t n, const float *b, int64_t s_b,
                        float *sums) {
  const struct lath_kernels *kernels = k->b->w.kernels;
  const int64_t first = m * k->number / k->b->workers, last = m * (k->number + 1) / k->b->workers;
  struct lath_panels panels = lath_panels_in_place(kernels, n, k->b->rows_now, NULL, 0);
  panels.packed = k->packed;
  lath_pack(kernels, &panels, 0, lath_panels_count(&panels), b, s_b, 0);
  const struct lath_product product = {.m = last - first,
                                       .a = a + first,
                                       .s_a = s_a,
                                       .a_order = LATH_A_COLUMNS,
                                       .a_stays = 1,
                                       .b = &panels,
                                       .start = LATH_START_C,
                                       .c = sums + first * n,
                                       .s_c = n,
                                       .scratch = k->scratch};
  lath_multiply(kernels, &product);
}

static void add_sums(const struct worker *k) {
  const struct backward *b = k->b;
  const struct lath_lstm_weights *w = &b->w;
  const struct lath_lowrank_lstm *a = b->a;
  if (a->du || a->du_in || lath_lstm_is_merged(&w->hidden) || lath_lstm_is_merged(&w->input))
    add_product(k, w->gates, b->gates, b->s_gates, w->columns, b->rows, w->s_rows, b->dw);
  if (a->d_bias && k->number == 0) w->kernels->add_rows(b->rows_now, w->gates, b->gates, b->s_gates, b->d_bias);
  if (a->dv && w->hidden.factored) add_product(k, a->rank, b->d_rows, w->s_rows, a->hidden, b->h, a->hidden, b->dv);
  if (a->dv_in && w->input.factored)
    add_product(k, a->in_rank, b->d_rows + w->input.column, w->s_rows, a->in, b->x, a->in, b->dv_in);
}

static void share_sums(void *arg, int64_t begin, int64_t end) {
  for (int64_t number = begin; number < end; number++) {
    const struct worker k = worker_of(arg, number);
    add_sums(&k);
  }
}

/* ---- blocks of rows --------------------------------------------------------------------------------------------------------------------------- */

static lath_status run_chunk(struct backward *b) {
  LATH_TRY(lath_host_run(b->host, b->workers, share_samples, b));
  LATH_TRY(lath_host_run(b->host, b->workers, share_sums, b));
  b->steps_now = b->rows_now = 0;
  return LATH_OK;
}

static lath_status run_block(struct backward *b, int64_t from, int64_t to) {
  const struct lath_lowrank_lstm *a = b->a;
  const int64_t h = a->hidden;
  b->from = from, b->to = to;
  b->steps_now = b->rows_now = 0;
  lath_lstm_state(a->dhn, from, to - from, h, b->dh + from * h);
  lath_lstm_state(a->dcn, from, to - from, h, b->dc + from * h);
  for (struct lath_lstm_walk walk = lath_lstm_walk(a, 1); lath_lstm_walk_on(a, &walk);) {
    const int64_t m = lath_smaller(walk.rows, to) - from;
    if (m > 0) {
      b->steps[b->steps_now++] = (struct step){.t = walk.t, .row = walk.row, .b = from, .m = m, .at = b->rows_now};
      b->rows_now += m;
    }
    if (b->steps_now == b->chunk || (walk.done == a->steps && b->steps_now > 0)) LATH_TRY(run_chunk(b));
  }
  return LATH_OK;
}

static void clear_sums(const struct backward *b) {
  memset(b->dw, 0, (size_t)b->dw_size * sizeof(float));
  memset(b->d_bias, 0, (size_t)b->w.gates * sizeof(float));
  memset(b->dv, 0, (size_t)b->dv_size * sizeof(float));
  memset(b->dv_in, 0, (size_t)b->dv_in_size * sizeof(float));
}

/* ---- from sums to gradients ------------------------------------------------------------------------------------------------------------------- */

static void write_bias(const struct backward *b) {
  const struct lath_lstm_weights *w = &b->w;
  const int64_t h = b->a->hidden;
  for (int64_t i = 0; i < 4 * h; i++) ((float *)b->a->d_bias)[i] = b->d_bias[lath_lstm_interleaved(w, i / h, i % h)];
}

/* The columns of a part of dw, (4 hidden, width), in the order of the weight. */
static void write_part(const struct backward *b, const struct lath_lstm_part *p, float *to) {
  const struct lath_lstm_weights *w = &b->w;
  const int64_t h = b->a->hidden;
  for (int64_t i = 0; i < 4 * h; i++)
    memcpy(to + i * p->width, b->dw + lath_lstm_interleaved(w, i / h, i % h) * w->columns + p->column,
           (size_t)p->width * sizeof(float));
}

/* The gradients of one pair of weights. */
static lath_status write_pair(const struct backward *b, const struct lath_lstm_part *p, struct unmerge *m, const float *dv_sums,
                              float *du, float *dv, const struct lath_host *host) {
  if (!lath_lstm_is_merged(p)) {
    if (du) write_part(b, p, du);
    if (dv) memcpy(dv, dv_sums, (size_t)(p->rank * p->from) * sizeof(float));
    return LATH_OK;
  }
  write_part(b, p, m->dw);
  m->u.a = m->dw, m->u.s_a = p->from, m->u.b = p->v, m->u.s_b = p->from, m->u.c = du, m->u.s_c = p->rank;
  m->v.a = p->u, m->v.s_a = p->rank, m->v.b = m->dw, m->v.s_b = p->from, m->v.c = dv, m->v.s_c = p->from;
  if (du) LATH_TRY(lath_gemm_run(&m->u, host));
  return dv ? lath_gemm_run(&m->v, host) : LATH_OK;
}

static lath_status run(struct backward *b, const struct lath_host *host) {
  const struct lath_lowrank_lstm *a = b->a;
  const struct lath_lstm_weights *w = &b->w;
  LATH_TRY(lath_lstm_weights_fill(&b->w, host));
  lath_pack(w->kernels, &b->back, 0, lath_panels_count(&b->back), w->interleaved, w->columns, 0);
  if (w->hidden.factored) lath_pack(w->kernels, &b->v_back, 0, lath_panels_count(&b->v_back), w->hidden.v, a->hidden, 0);
  if (w->input.factored) lath_pack(w->kernels, &b->v_in_back, 0, lath_panels_count(&b->v_in_back), w->input.v, a->in, 0);
  clear_sums(b);
  for (int64_t i = 0; i < b->blocks; i++) LATH_TRY(run_block(b, a->batch * i / b->blocks, a->batch * (i + 1) / b->blocks));
  if (a->d_bias) write_bias(b);
  LATH_TRY(write_pair(b, &w->hidden, &b->hidden, b->dv, a->du, a->dv, host));
  return write_pair(b, &w->input, &b->input, b->dv_in, a->du_in, a->in_rank > 0 ? a->dv_in : NULL, host);
}

/* ---- entries ------------------------------------------------------------------------------------------------------------------------------------ */

lath_status lath_lowrank_lstm_backward_workspace(const struct lath_lowrank_lstm *a, const struct lath_host *host,
                                                 size_t *bytes) {
  struct backward b = {0};
  struct lath_arena arena = lath_arena_on(NULL);
  if (!host || !bytes) return LATH_INVALID_ARGUMENT;
  LATH_TRY(lath_lstm_check_backward(a));
  if (a->dtype == LATH_F32) take(&b, a, host, &arena);
  return lath_arena_bytes(&arena, lath_lstm_reference_bytes(a), bytes);
}

lath_status lath_lowrank_lstm_backward(const struct lath_lowrank_lstm *a, const struct lath_host *host) {
  size_t bytes;
  LATH_TRY(lath_lowrank_lstm_backward_workspace(a, host, &bytes));
  LATH_TRY(lath_check_workspace(a->workspace, a->workspace_bytes, bytes));
  if (a->dtype != LATH_F32) return lath_lowrank_lstm_backward_ref(a);
  struct lath_arena arena = lath_arena_on(a->workspace);
  struct backward b = {0};
  take(&b, a, host, &arena);
  return run(&b, host);
}
