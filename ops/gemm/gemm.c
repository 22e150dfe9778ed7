/* SPDX-License-Identifier: Apache-2.0
 * gemm.c - blocking and loop order around the micro-kernels.
 *
 * Two orders, by the length of k (docs/planner.md has the measurements):
 *   short k   rows outside, panels inside: the tile of A stays in L1 while C is written left to right and B streams from L2. Such a
 *             product is bound by its stores; the other order would write C in columns, at half the speed.
 *   long k    panels outside, rows inside, k in blocks: a block of one panel stays in L1 while rows of A pass by.
 * Neither changes the result: an element of C is one chain of multiply-adds along k, whatever the blocking. */
#include "gemm/gemm.h"

#include "core/integers.h"

#define SHORT_K 256   /* rows outside up to here; also the length of a block of k */
#define BLOCK_M 96    /* rows of A that are packed at a time */
#define WIDE_N 512    /* above it, packing A pays: each packed row serves many panels */
#define FEW_ROWS 3    /* of A at a time */
#define COPY_MIN_K 32 /* a k-major A shorter than this is read in place */

/* The last panel uses no more vectors than it has columns for. A tile one vector wide loads as often as it multiplies: that counts
 * as a vector more for every 16. Of FEW_ROWS the tiles are low, and each sum waits for its last addition: wide ones have more sums
 * under way. */
int lath_panel_vecs(const struct lath_kernels *kernels, int64_t m, int64_t n) {
  static const int order[] = {2, 3, 4, 1};
  const int64_t vectors = lath_ceil_div(n, kernels->lanes);
  if (m <= FEW_ROWS) return (int)lath_larger(1, lath_smaller(LATH_MAX_VECS, vectors));
  int best = 1;
  int64_t least = INT64_MAX;
  for (int i = 0; i < 4; i++) {
    const int64_t narrow = order[i] == 1 ? vectors : vectors % order[i] == 1, cost = 16 * vectors + narrow;
    if (order[i] <= vectors && cost < least) least = cost, best = order[i];
  }
  return best;
}

struct lath_panels lath_panels_in_place(const struct lath_kernels *kernels, int64_t n, int64_t k, const float *b, int64_t s_b) {
  const int vecs = lath_panel_vecs(kernels, INT64_MAX, n);
  return (struct lath_panels){.n = n, .k = k, .width = (int64_t)vecs * kernels->lanes, .vecs = vecs, .rows = b, .stride = s_b};
}

struct lath_panels lath_panels_listed(const struct lath_kernels *kernels, int64_t n, int64_t k, const float *b,
                                      const int64_t *listed) {
  struct lath_panels p = lath_panels_in_place(kernels, n, k, b, 0);
  p.listed = listed;
  return p;
}

int64_t lath_panels_count(const struct lath_panels *p) { return lath_ceil_div(p->n, p->width); }

struct lath_panels lath_panels_take(const struct lath_kernels *kernels, struct lath_arena *arena, int64_t m, int64_t n,
                                    int64_t k) {
  const int vecs = lath_panel_vecs(kernels, m, n);
  struct lath_panels p = {.n = n, .k = k, .width = (int64_t)vecs * kernels->lanes, .vecs = vecs};
  p.packed = lath_take(arena, lath_panels_count(&p) * p.width, k);
  return p;
}

void lath_pack(const struct lath_kernels *kernels, const struct lath_panels *p, int64_t from, int64_t to, const float *w,
               int64_t s_w, int transposed) {
  for (int64_t j = from; j < to; j++) {
    float *panel = p->packed + j * p->k * p->width;
    const int64_t first = j * p->width, n = lath_smaller(p->n - first, p->width);
    if (transposed)
      kernels->pack_transposed(n, p->k, w + first * s_w, s_w, p->width, panel);
    else
      kernels->pack_plain(n, p->k, w + first, s_w, p->width, panel);
  }
}

/* ---- one block of k ------------------------------------------------------------------------------------------------------------ */

struct block {
  const struct lath_kernels *kernels;
  const struct lath_product *product;
  int64_t k0, k;        /* the range of k */
  int64_t m0, m, tiles; /* the range of rows, in equal tiles: 16 is 8 + 8, never 14 + 2 */
  enum lath_start start;
  const float *packed_a; /* NULL: A in place */
  float *panel_copy;
};

static int64_t tile_row(const struct block *b, int64_t tile) { return b->m * tile / b->tiles; }

/* Where rows [k0, k0 + k) of panel j lie, and their stride. A panel in place is copied when it is cut off by the edge of B (kernels
 * load whole vectors) or when several tiles use it (rows far apart in memory compete for the same lines of L1). */
static const float *panel_rows(const struct block *b, int64_t j, int64_t *stride) {
  const struct lath_panels *p = b->product->b;
  const int64_t n = lath_smaller(p->n - j * p->width, p->width);
  *stride = p->width;
  if (p->packed) return p->packed + (j * p->k + b->k0) * p->width;
  if (p->listed) return p->rows + (p->starts ? p->starts[j] : j * p->width);
  const float *rows = p->rows + b->k0 * p->stride + j * p->width;
  if (n == p->width && b->tiles <= 2) {
    *stride = p->stride;
    return rows;
  }
  b->kernels->pack_plain(n, b->k, rows, p->stride, p->width, b->panel_copy);
  return b->panel_copy;
}

static void run_tile(const struct block *b, int64_t tile, int64_t j, const float *rows, int64_t stride) {
  const struct lath_product *g = b->product;
  const int64_t from = tile_row(b, tile), height = tile_row(b, tile + 1) - from, i = b->m0 + from;
  const int64_t column = j * g->b->width;
  struct lath_tile t = {.k = b->k,
                        .n = g->b->n - column,
                        .a = g->a + b->k0,
                        .s_a = g->s_a,
                        .b = rows,
                        .s_b = stride,
                        .c = g->c + i * g->s_c + column,
                        .s_c = g->s_c,
                        .start = b->start};
  int kind = g->a_order;
  if (b->packed_a) {
    kind = LATH_A_COLUMNS;
    t.s_a = b->kernels->lanes;
    t.a = b->packed_a + tile * t.s_a * b->k;
  } else if (kind == LATH_A_COLUMNS) {
    t.a = g->a + b->k0 * g->s_a + i;
  } else if (g->a_rows) {
    t.a_rows = g->a_rows + i;
  } else {
    t.a += i * g->s_a;
  }
  if (g->b->listed) {
    kind = LATH_B_LISTED;
    t.b_rows = g->b->listed + b->k0;
  }
  if (g->bias) t.bias = g->bias + (b->start == LATH_START_ROWS ? i : column);
  const int64_t vectors = lath_ceil_div(t.n, b->kernels->lanes);
  b->kernels->panel[kind][lath_smaller(g->b->vecs, vectors)][height](&t);
}

static void pack_a(const struct block *b, float *packed) {
  const struct lath_product *g = b->product;
  const int64_t lanes = b->kernels->lanes;
  for (int64_t t = 0; t < b->tiles; t++) {
    const int64_t from = tile_row(b, t), height = tile_row(b, t + 1) - from, i = b->m0 + from;
    if (g->a_order == LATH_A_ROWS)
      b->kernels->pack_transposed(height, b->k, g->a + i * g->s_a + b->k0, g->s_a, lanes, packed + t * lanes * b->k);
    else
      b->kernels->pack_plain(height, b->k, g->a + b->k0 * g->s_a + i, g->s_a, lanes, packed + t * lanes * b->k);
  }
}

static void panels_outside(const struct block *b) {
  const int64_t count = lath_panels_count(b->product->b);
  for (int64_t j = 0; j < count; j++) {
    int64_t stride;
    const float *rows = panel_rows(b, j, &stride);
    for (int64_t t = 0; t < b->tiles; t++) run_tile(b, t, j, rows, stride);
  }
}

static void rows_outside(const struct block *b) {
  const int64_t count = lath_panels_count(b->product->b);
  for (int64_t t = 0; t < b->tiles; t++)
    for (int64_t j = 0; j < count; j++) {
      int64_t stride;
      const float *rows = panel_rows(b, j, &stride);
      run_tile(b, t, j, rows, stride);
    }
}

/* ---- the whole product ------------------------------------------------------------------------------------------------------------ */

static int64_t tallest_packed(const struct lath_kernels *kernels) {
  int64_t tiles = 0;
  for (int v = 1; v <= LATH_MAX_VECS; v++) {
    const int64_t t = lath_ceil_div(BLOCK_M, kernels->rows[v]);
    tiles = t > tiles ? t : tiles;
  }
  return tiles * kernels->lanes;
}

static int64_t panel_copy_floats(const struct lath_kernels *kernels) {
  return (int64_t)SHORT_K * LATH_MAX_VECS * kernels->lanes;
}

int64_t lath_product_scratch(const struct lath_kernels *kernels) {
  return panel_copy_floats(kernels) + SHORT_K * tallest_packed(kernels);
}

void lath_multiply(const struct lath_kernels *kernels, const struct lath_product *g) {
  const int64_t k = g->b->k, blocks = k > SHORT_K ? lath_ceil_div(k, SHORT_K) : 1;
  const int in_place = g->a_stays || g->a_rows || g->b->listed; /* of A: the kernels for lists know no other A */
  const int packs = in_place ? 0 : g->a_order == LATH_A_ROWS ? blocks > 1 && g->b->n > WIDE_N : k > COPY_MIN_K;
  const int rows_first = blocks == 1 && !packs && (g->b->packed || g->b->listed);
  const int64_t step = packs ? BLOCK_M : g->m;
  if (g->m == 0 || g->b->n == 0) return;
  for (int64_t q = 0; q < blocks; q++) {
    struct block b = {.kernels = kernels, .product = g, .k0 = k * q / blocks, .start = q > 0 ? LATH_START_C : g->start};
    b.k = k * (q + 1) / blocks - b.k0;
    b.panel_copy = g->scratch;
    for (b.m0 = 0; b.m0 < g->m; b.m0 += step) {
      b.m = lath_smaller(step, g->m - b.m0);
      b.tiles = lath_ceil_div(b.m, kernels->rows[g->b->vecs]);
      if (packs) {
        float *packed = g->scratch + panel_copy_floats(kernels);
        pack_a(&b, packed);
        b.packed_a = packed;
      }
      if (rows_first)
        rows_outside(&b);
      else
        panels_outside(&b);
    }
  }
}
