/* SPDX-License-Identifier: Apache-2.0
 * kernels.h - the table of inner kernels, one instance per instruction set.
 *
 * Everything here works on float, on one thread, and on blocks that the drivers in gemm.c have cut to size. Vocabulary: a product
 * C = A B with A (m, k), B (k, n), C (m, n); `s_x` is the row stride of x; a *panel* is a block of `width` columns of B stored as
 * (k, width), width = vecs * lanes, padded with zeros. */
#ifndef LATH_GEMM_KERNELS_H
#define LATH_GEMM_KERNELS_H

#include "lath.h"

#define LATH_MAX_VECS 4  /* widest register tile, in vectors */
#define LATH_MAX_ROWS 16 /* tallest */

/* What a tile of C starts from. */
enum lath_start {
  LATH_START_COLUMNS = 0, /* bias[j] in column j, or 0 without a bias */
  LATH_START_ROWS,        /* bias[i] in row i, or 0 without a bias */
  LATH_START_C            /* what C holds: C += A B */
};

/* One tile, C (rows, width) = start + A B; its rows and vectors are fixed in the kernel, and only the first n columns are written.
 *
 * A is read in place: a[i * s_a + k] (LATH_A_ROWS), a[k * s_a + i] (LATH_A_COLUMNS: packed, or A transposed in memory).
 * Rows of B are s_b apart: a panel, or B in place where all `width` columns exist. Operands whose rows lie at no fixed distance
 * come with a list of them: row i of A at a + a_rows[i], row k of B at b + b_rows[k] (LATH_B_LISTED: A as in LATH_A_ROWS). */
struct lath_tile {
  int64_t k, n;
  const float *a;
  int64_t s_a;
  const int64_t *a_rows; /* NULL: i * s_a */
  const float *b;
  int64_t s_b;
  const int64_t *b_rows; /* for LATH_B_LISTED */
  float *c;
  int64_t s_c;
  const float *bias;
  enum lath_start start;
};

/* From gates before their activation (rows 4 lanes apart): c = sigmoid(f) c + sigmoid(i) tanh(g), h = sigmoid(o) tanh(c), in place; both
 * are also written elsewhere, if wanted. */
struct lath_lstm_cells {
  float *c, *h; /* (m, n), rows `stride` apart */
  int64_t stride;
  float *c_out, *h_out, *gates_out; /* or NULL; the last: after their activation, gate by gate s_gate apart */
  int64_t s_c_out, s_h_out, s_gates_out, s_gate;
};

/* From gates after their activation to the gradients of what they were before, and from dc, what later cells have added to the gradient of
 * c, to the same for the cell before. */
struct lath_lstm_cells_back {
  const float *gates; /* gate k of unit u in row r at r s_gates + u / lanes s_group + u % lanes + k s_gate */
  int64_t s_gates, s_group, s_gate;
  const float *dh, *c, *c_before; /* (m, units) */
  int64_t s_dh, s_c, s_c_before;
  float *dc;
  int64_t s_dc;
};

typedef void (*lath_panel_fn)(const struct lath_tile *tile);

enum { LATH_A_ROWS = 0, LATH_A_COLUMNS = 1, LATH_B_LISTED = 2, LATH_PANEL_KINDS };

struct lath_kernels {
  int lanes;
  int rows[LATH_MAX_VECS + 1]; /* tallest tile of each width */
  lath_panel_fn panel[LATH_PANEL_KINDS][LATH_MAX_VECS + 1][LATH_MAX_ROWS + 1];

  /* C (m, n) = A B^T + bias with A (m, k) and B (n, k) both read along their rows: no packing at all. For long k. */
  void (*dot)(int64_t m, int64_t n, int64_t k, const float *a, int64_t s_a, const float *b, int64_t s_b, const float *bias,
              float *c, int64_t s_c);

  /* C (m, n) = or += A B^T with row j of B at b + b_rows[j]. For short n, where panels of B would be half empty. */
  void (*dot_listed)(int64_t m, int64_t n, int64_t k, const float *a, int64_t s_a, const float *b, const int64_t *b_rows,
                     int accumulate, float *c, int64_t s_c);

  /* One panel from n <= width columns: of B^T given as (n, k) rows, or of B given as (k, n) rows. */
  void (*pack_transposed)(int64_t n, int64_t k, const float *w, int64_t s_w, int64_t width, float *panel);
  void (*pack_plain)(int64_t n, int64_t k, const float *w, int64_t s_w, int64_t width, float *panel);

  /* C (m, n) = P W^T + bias for few rows m and short k, where packing W (n, k) would cost more than it saves: W is the broadcast
   * side, P^T the panel (k, round_up(m, lanes)), and each tile is turned on its way out. */
  void (*expand)(int64_t m, int64_t n, int64_t k, const float *p_panel, const float *w, int64_t s_w, const float *bias,
                 float *c, int64_t s_c);

  /* dst (n, m) = src (m, n) transposed. */
  void (*transpose)(int64_t m, int64_t n, const float *src, int64_t s_src, float *dst, int64_t s_dst);

  /* Rows of some planes of images. In each row: dst[w] = src[w * step] for from <= w < to, and zero in the rest of dst[0, width). */
  void (*copy_rows)(int64_t planes, int64_t rows, int64_t width, int64_t from, int64_t to, const float *src,
                    int64_t s_src_plane, int64_t s_src, int64_t step, float *dst, int64_t s_dst_plane, int64_t s_dst);
  /* Planes without gaps between their rows, as one long row each: dst[w] = src[w] where bit w % lanes of lanes_of[w / lanes] is set,
   * else zero, for w of [0, n); src is not read where it is not taken. */
  void (*copy_masked)(int64_t planes, int64_t n, const uint32_t *lanes_of, const float *src, int64_t s_src_plane, float *dst,
                      int64_t s_dst_plane);

  /* The way back. For one step: dst[w] = the sum over taps j of src[j * s_tap + w + shift - j * dilation], where that lies within
   * [0, n); for all w of [0, width) and in each row. For other steps: dst[w * step] += src[w] for from <= w < to. */
  void (*sum_rows)(int64_t rows, int64_t width, int64_t taps, int64_t shift, int64_t dilation, int64_t n, const float *src,
                   int64_t s_tap, int64_t s_src, float *dst, int64_t s_dst);
  void (*add_to_rows)(int64_t rows, int64_t from, int64_t to, const float *src, int64_t s_src, float *dst, int64_t s_dst,
                      int64_t step);

  void (*add_rows)(int64_t m, int64_t n, const float *a, int64_t s_a, float *sum);    /* sum[j] += a[0][j] + a[1][j] + ... */
  void (*add_columns)(int64_t m, int64_t n, const float *a, int64_t s_a, float *sum); /* sum[i] += a[i][0] + a[i][1] + ... */

  /* The cells of an LSTM: m <= LATH_MAX_ROWS rows of n <= lanes units; or of any number of rows and units. Gates come in groups of
   * `lanes` units: vectors i, f, g, o. */
  void (*lstm_cells)(int64_t m, int64_t n, const float *gates, const struct lath_lstm_cells *cells);
  void (*lstm_gates)(int64_t m, int64_t units, float *gates, int64_t s_gates); /* applies sigmoid to i, f, o and tanh to g */
  void (*lstm_cells_back)(int64_t m, int64_t units, const struct lath_lstm_cells_back *cells, float *d_gates,
                          int64_t s_d_gates);
};

extern const struct lath_kernels lath_kernels_generic;
#if defined(__x86_64__)
extern const struct lath_kernels lath_kernels_avx2, lath_kernels_avx512;
#endif

const struct lath_kernels *lath_kernels(void); /* those of lath_cpu_isa() */

#endif
