/* SPDX-License-Identifier: Apache-2.0
 * lstm_gradients.h - inside the library: the backward of the low-rank LSTM, shared by its steps and its large products. */
#ifndef LATH_CUDA_LOWRANK_LSTM_GRADIENTS_H
#define LATH_CUDA_LOWRANK_LSTM_GRADIENTS_H

#include "lowrank/lstm_steps.h"

struct lath_cuda_lstm_gradients {
  struct lath_cuda_lstm l;
  int64_t chunks;
  /* Once per call. */
  void *u_t, *v_t, *w_t; /* (rank, 4 hidden), (hidden, s_p) if factored; (hidden, 4 hidden) if merged */
  void *dh, *dc;         /* (batch, hidden): from one chunk to the next, or from one step to the next */
  void *dw, *dw_in;      /* of merged weights: (4 hidden, hidden), (4 hidden, in) */
  void *sums, *partial;  /* of da: (chunks, 4 hidden) if there are several, and what summing up takes */
  /* Of a chunk. */
  void *da[2];    /* (chunk, 4 hidden): the gates before it; two where the next chunk reads the last one's */
  void *dp, *p;   /* (chunk, s_p), (chunk, rank) */
  void *h;        /* (chunk, hidden): h before each row */
  void *dpx, *dx; /* (chunk, in_rank); (chunk, in) if dx does not lie in rows */
};

/* One chunk, whose number in the backward is `number`, and what lies in the buffers of its number. */
struct lath_cuda_lstm_part_of {
  struct lath_cuda_lstm_chunk chunk;
  int64_t number;
  void *da;
  const void *x;
  int64_t s_x;
};

void lath_cuda_lstm_take_products(struct lath_cuda_lstm_gradients *g, struct lath_arena *arena);

/* Before the steps: x in rows, h before each row, and where the forward kept none, the gates before biases and activation in da. */
lath_status lath_cuda_lstm_begin_chunk(const struct lath_cuda_lstm_gradients *g, struct lath_cuda_lstm_part_of *part,
                                       struct lath_cuda *cuda);

/* After them: dx, and what the chunk adds to the gradients of weights and biases. */
lath_status lath_cuda_lstm_end_chunk(const struct lath_cuda_lstm_gradients *g, const struct lath_cuda_lstm_part_of *part,
                                     struct lath_cuda *cuda);

/* After all chunks: factors of merged weights, biases. */
lath_status lath_cuda_lstm_end(const struct lath_cuda_lstm_gradients *g, struct lath_cuda *cuda);

#endif
