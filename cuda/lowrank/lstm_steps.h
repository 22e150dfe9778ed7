/* SPDX-License-Identifier: Apache-2.0
 * lstm_steps.h - inside the library: what the files of the low-rank LSTM share.
 *
 * What does not depend on the step before is done by large products for a *chunk* of steps at a time. A step is then two launches,
 *
 *   p = h_before v^T                 (project)
 *   a = start + p u^T + biases, and the cells of each sample and unit that these gates belong to (cells)
 *
 * and with merged factors one, a = start + h_before (u v)^T. `start` is what the inputs add to the gates. In the backward likewise:
 *
 *   dp = da u                        (project)
 *   dh = dp v, and the gradients of the cells of the step before (cells_back)
 *
 * Where the factors of a layer fit one multiprocessor, one launch does all steps of a chunk ("resident", at the end).
 *
 * *Before* and *after* are meant in the order in which the steps are taken, which is the opposite one if args->reverse. */
#ifndef LATH_CUDA_LOWRANK_LSTM_STEPS_H
#define LATH_CUDA_LOWRANK_LSTM_STEPS_H

#include "core/device.h"
#include "gemm/product.h"

#ifdef __cplusplus
extern "C" {
#endif

struct lath_arena;

/* ---- steps --------------------------------------------------------------------------------------------------------------- */

struct lath_cuda_lstm_step {
  int64_t t, row, rows; /* rows 0: beyond the sequence; row is the number of the first one */
};

static inline struct lath_cuda_lstm_step lath_cuda_lstm_at(const struct lath_lowrank_lstm *a, int64_t t, int64_t row) {
  const int64_t rows = t < 0 || t >= a->steps ? 0 : a->batch_sizes ? a->batch_sizes[t] : a->batch;
  const struct lath_cuda_lstm_step step = {t, row, rows};
  return step;
}

static inline struct lath_cuda_lstm_step lath_cuda_lstm_later(const struct lath_lowrank_lstm *a, struct lath_cuda_lstm_step s) {
  return lath_cuda_lstm_at(a, s.t + 1, s.row + s.rows);
}
static inline struct lath_cuda_lstm_step lath_cuda_lstm_earlier(const struct lath_lowrank_lstm *a,
                                                                struct lath_cuda_lstm_step s) {
  s = lath_cuda_lstm_at(a, s.t - 1, s.row);
  s.row -= s.rows;
  return s;
}
static inline struct lath_cuda_lstm_step lath_cuda_lstm_after(const struct lath_lowrank_lstm *a, struct lath_cuda_lstm_step s) {
  return a->reverse ? lath_cuda_lstm_earlier(a, s) : lath_cuda_lstm_later(a, s);
}
static inline struct lath_cuda_lstm_step lath_cuda_lstm_before(const struct lath_lowrank_lstm *a,
                                                               struct lath_cuda_lstm_step s) {
  return a->reverse ? lath_cuda_lstm_later(a, s) : lath_cuda_lstm_earlier(a, s);
}

int64_t lath_cuda_lstm_rows(const struct lath_lowrank_lstm *args); /* of all steps */
struct lath_cuda_lstm_step lath_cuda_lstm_first(const struct lath_lowrank_lstm *args,
                                                int last); /* in order; with `last` the last one */

/* Neighbouring steps, as many as have `most` rows together, but one at least. */
#define LATH_CUDA_LSTM_CHUNK 2048
#define LATH_CUDA_LSTM_LONG_CHUNK 16384 /* where each chunk brings the weights in again */

struct lath_cuda_lstm_chunk {
  struct lath_cuda_lstm_step from; /* the one with the smallest t */
  int64_t steps, rows;
};

/* From `first` on, which is the first one that is taken in the forward, and in the backward (`back`) the last one. */
struct lath_cuda_lstm_chunk lath_cuda_lstm_chunk(const struct lath_lowrank_lstm *args, struct lath_cuda_lstm_step first,
                                                 int64_t most, int back);
int64_t lath_cuda_lstm_chunk_rows(const struct lath_lowrank_lstm *args, int64_t most); /* the most that a chunk has */

/* ---- how a call is carried out (lstm_plan.c) ------------------------------------------------------------------------------ */

/* The weight of h or of x. */
struct lath_cuda_lstm_part {
  int64_t from, rank; /* rank 0: dense as given */
  int factored;       /* else dense: as given, or u v */
  const void *v, *u;  /* (rank, from), (4 hidden, rank); dense as given: u (4 hidden, from) */
};

struct lath_cuda_lstm {
  const struct lath_lowrank_lstm *a;
  struct lath_device device;
  struct lath_cuda_lstm_part hidden, input;
  int resident;              /* samples of a block that takes them through all steps of a chunk; 0: step by step */
  int64_t gates;             /* 4 hidden */
  int64_t s_h, s_p;          /* between rows of h and of p as steps read them */
  int64_t rows, most, chunk; /* of all steps; that a chunk may have, unless a step has more; that one has */
  void *x, *px, *dense_x;    /* of a chunk: x in rows, if it does not lie so; x v_in^T, if factored; u_in v_in, if merged */
};

static inline int lath_cuda_lstm_is_merged(const struct lath_cuda_lstm_part *p) { return p->rank > 0 && !p->factored; }

lath_status lath_cuda_lstm_plan(const struct lath_lowrank_lstm *args, const struct lath_cuda *cuda, int backward,
                                struct lath_cuda_lstm *plan);

/* ---- products of all rows of a chunk (lstm_inputs.c) ---------------------------------------------------------------------- */

void lath_cuda_lstm_take_inputs(struct lath_cuda_lstm *l, struct lath_arena *arena);
lath_status lath_cuda_lstm_merge_inputs(const struct lath_cuda_lstm *l, struct lath_cuda *cuda); /* once per call */

/* Whether the rows of all steps lie at one distance, and where those of a step begin, in elements. */
int lath_cuda_lstm_lies_in_rows(const struct lath_lowrank_lstm *args, int64_t s_step, int64_t s_row);

static inline int64_t lath_cuda_lstm_offset(const struct lath_lowrank_lstm *a, struct lath_cuda_lstm_step s, int64_t s_step,
                                            int64_t s_row) {
  return a->batch_sizes ? s.row * s_row : s.t * s_step;
}

/* The rows of x in a chunk, and their distance. */
lath_status lath_cuda_lstm_rows_of_x(const struct lath_cuda_lstm *l, const struct lath_cuda_lstm_chunk *chunk, const void **x,
                                     int64_t *s_x, struct lath_cuda *cuda);

lath_status lath_cuda_lstm_form_px(const struct lath_cuda_lstm *l, const struct lath_cuda_lstm_chunk *chunk, const void *x,
                                   int64_t s_x, struct lath_cuda *cuda);

/* start (rows, 4 hidden) = what x adds to the gates, without biases; fills px. */
lath_status lath_cuda_lstm_start(const struct lath_cuda_lstm *l, const struct lath_cuda_lstm_chunk *chunk, const void *x,
                                 int64_t s_x, void *start, struct lath_cuda *cuda);

/* A product of contiguous operands but for the strides that are given: c (m, n) = op(a) op(b), or c += it. */
struct lath_cuda_gemm lath_cuda_lstm_product_of(const struct lath_cuda_lstm *l, int64_t m, int64_t n, int64_t k);

/* ---- copies (lstm_rows.cu) ------------------------------------------------------------------------------------------------- */

/* For each step rows of `cols` elements, which become rows of `width`, filled up with zeros. */
#define LATH_CUDA_LSTM_MOVES 64

struct lath_cuda_lstm_move {
  int64_t cols, width;
  const void *from; /* rows that it has; may be NULL where it has none */
  int64_t s_from;
  const void *rest; /* (rows, cols) contiguous, the other rows of every step; NULL: zeros */
  void *to;
  int64_t s_to;
  int steps;
  struct {
    int64_t from, to; /* in elements, from the pointers above */
    int64_t rows, present;
  } step[LATH_CUDA_LSTM_MOVES];
};

int lath_cuda_lstm_move(lath_dtype dtype, const struct lath_cuda_lstm_move *move,
                        void *stream); /* a cudaError_t, as all below */

/* rows of `width` = rows of (rows, cols) contiguous, or zeros */
lath_status lath_cuda_lstm_fill(lath_dtype dtype, int64_t rows, int64_t cols, const void *from, int64_t width, void *to,
                                struct lath_cuda *cuda);

/* Element `at` of a buffer; NULL stays NULL. Callers know whether they may write there. */
static inline void *lath_cuda_lstm_element(lath_dtype dtype, const void *data, int64_t at) {
  return data ? (char *)(uintptr_t)data + at * (int64_t)lath_dtype_size(dtype) : NULL;
}

/* to (cols, rows), its rows s_to apart and filled up with zeros to `width` = from (rows, cols)^T */
int lath_cuda_lstm_transpose(lath_dtype dtype, int64_t rows, int64_t cols, const void *from, int64_t width, void *to,
                             int64_t s_to, void *stream);

/* ---- steps (lstm_steps.cu) ------------------------------------------------------------------------------------------------- */

/* Of m rows of a with n rows of w, both of k elements and on 16 bytes: strides are multiples of LATH_CUDA_LSTM_VECTOR, and what lies
 * between k and the next multiple is zero in both. */
#define LATH_CUDA_LSTM_VECTOR 4

struct lath_cuda_lstm_product {
  int64_t m, n, k;
  const void *a, *w;
  int64_t s_a, s_w;
};

static inline int64_t lath_cuda_lstm_padded(int64_t length) {
  return (length + LATH_CUDA_LSTM_VECTOR - 1) / LATH_CUDA_LSTM_VECTOR * LATH_CUDA_LSTM_VECTOR;
}

/* p (m, n) = a w^T */
int lath_cuda_lstm_project(lath_dtype dtype, const struct lath_cuda_lstm_product *product, void *p, int64_t s_p,
                           int multiprocessors, void *stream);

/* The cells of one step; pointers are to its first row. */
struct lath_cuda_lstm_cells {
  int64_t hidden;
  const void *start;          /* (m, 4 hidden); may be `gates` */
  const void *bias_in, *bias; /* (4 hidden), or NULL */
  void *c;                    /* (m, hidden): of the step before, then of this one */
  void *h;                    /* (m, hidden), rows s_h apart, as the next step reads it */
  int64_t s_h;
  void *y; /* (m, hidden), or NULL */
  int64_t s_y;
  void *c_kept, *gates; /* (m, hidden), (m, 4 hidden), or NULL */
  void *hn;             /* (batch, hidden), or NULL: rows from `last` on are written */
  int64_t last;
};

/* product: m samples, n = 4 hidden. */
int lath_cuda_lstm_cells(lath_dtype dtype, const struct lath_cuda_lstm_product *product,
                         const struct lath_cuda_lstm_cells *cells, int multiprocessors, void *stream);

/* Gradients of the cells of one step. Rows below `known` get dh from the product and dc from the buffer of that name, the others
 * theirs from dhn and dcn. Rows from `m` on have no step any more: what they get is that of h0 and c0. */
struct lath_cuda_lstm_cells_back {
  int64_t hidden, m, known;
  const void *dhn, *dcn; /* (batch, hidden), or NULL: zeros */
  const void *dy;        /* (m, hidden), or NULL */
  int64_t s_dy;
  const void *gates;          /* (m, 4 hidden); may be `da` */
  int activated;              /* else they lack the biases and the activation */
  const void *bias_in, *bias; /* (4 hidden), or NULL */
  const void *c, *c_before;   /* (m, hidden); of the step before, which has `before` rows */
  int64_t before;
  const void *c0;  /* (batch, hidden), or NULL: for the rows from `before` on */
  void *da;        /* (m, 4 hidden) */
  void *dc;        /* (batch, hidden), read and written */
  void *dh0, *dc0; /* (batch, hidden), or NULL */
};

/* product: as many samples as `known` and `m` say at most, n = hidden. `known` 0: it is not formed. */
int lath_cuda_lstm_cells_back(lath_dtype dtype, const struct lath_cuda_lstm_product *product,
                              const struct lath_cuda_lstm_cells_back *cells, int multiprocessors, void *stream);

/* ---- all steps at once (lstm_resident.cu) ----------------------------------------------------------------------------------- */

/* The steps of one chunk of a sequence that is not packed, in F32. */
struct lath_cuda_lstm_resident {
  int64_t steps, batch, hidden, rank;
  int reverse;
  const float *v, *u;          /* (rank, hidden), (4 hidden, rank) */
  const float *start;          /* (steps batch, 4 hidden); may be `gates` */
  const float *bias_in, *bias; /* (4 hidden), or NULL */
  float *h, *c;                /* the state: (batch, hidden), rows of h s_h apart */
  int64_t s_h;
  float *y; /* of the step with the smallest t, as what follows; NULL: none */
  int64_t s_y_step, s_y_row;
  float *c_kept, *gates; /* (steps batch, hidden), (steps batch, 4 hidden), or NULL */
  float *hn;             /* (batch, hidden), or NULL */
};

/* Samples that a block takes; 0 where the factors do not fit a multiprocessor, or a thread for each gate a block. */
int lath_cuda_lstm_samples_resident(int64_t hidden, int64_t rank, int64_t batch, const struct lath_device *device);

int lath_cuda_lstm_run_resident(const struct lath_cuda_lstm_resident *resident, int samples, int ordinal,
                                const struct lath_device *device, void *stream);

/* The same backwards (lstm_resident_back.cu); pointers to rows are to those of the step with the smallest t. */
struct lath_cuda_lstm_resident_back {
  int64_t steps, batch, hidden, rank;
  int reverse;
  const float *v, *u;
  const float *gates; /* (steps batch, 4 hidden); may be `da` */
  int activated;      /* else they lack the biases and the activation */
  const float *bias_in, *bias;
  const float *c, *c_first; /* (steps batch, hidden); (batch, hidden) before the first of these steps, NULL: zeros */
  const float *dy;          /* or NULL */
  int64_t s_dy_step, s_dy_row;
  float *da, *dp; /* (steps batch, 4 hidden), (steps batch, rank) with rows s_p apart */
  int64_t s_p;
  const float *dh_in, *dc_in; /* (batch, hidden), from what comes after these steps; NULL: zeros */
  float *dh_out, *dc_out;     /* (batch, hidden), for what is before them; or NULL */
};

int lath_cuda_lstm_samples_resident_back(int64_t hidden, int64_t rank, int64_t batch, const struct lath_device *device);

int lath_cuda_lstm_run_resident_back(const struct lath_cuda_lstm_resident_back *resident, int samples, int ordinal,
                                     const struct lath_device *device, void *stream);

#ifdef __cplusplus
}
#endif
#endif
