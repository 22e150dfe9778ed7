/* SPDX-License-Identifier: Apache-2.0
 * lstm_rows.cu - copies of the low-rank LSTM: rows of sequences and states into buffers whose rows lie on 16 bytes, and transposed
 * weights. */
#include "core/numbers.h"
#include "lowrank/lstm_steps.h"

enum { LANES = 32, ROW_LANES = 8, TILE = 32, MOST_BLOCKS = 4096, MOST_GRID_Y = 65535 };

/* A block takes 8 rows at a time, of the step of its number in y. */
/* launch: lstm_move threads=256 shared=0 */
template <class T>
static __global__ void __launch_bounds__(LANES *ROW_LANES) lstm_move(struct lath_cuda_lstm_move g) {
  const T *from = static_cast<const T *>(g.from) + g.step[blockIdx.y].from, *rest = static_cast<const T *>(g.rest);
  T *to = static_cast<T *>(g.to) + g.step[blockIdx.y].to;
  const int64_t rows = g.step[blockIdx.y].rows, present = g.step[blockIdx.y].present;
  for (int64_t r = (int64_t)blockIdx.x * ROW_LANES + threadIdx.y; r < rows; r += (int64_t)gridDim.x * ROW_LANES) {
#pragma unroll 1
    for (int64_t c = threadIdx.x; c < g.width; c += LANES) {
      T value = 0;
      if (c < g.cols && r < present) value = from[r * g.s_from + c];
      if (c < g.cols && r >= present && rest) value = rest[r * g.cols + c];
      to[r * g.s_to + c] = value;
    }
  }
}

extern "C" int lath_cuda_lstm_move(lath_dtype dtype, const struct lath_cuda_lstm_move *g, void *stream) {
  int64_t rows = 0;
  for (int i = 0; i < g->steps; i++) rows = g->step[i].rows > rows ? g->step[i].rows : rows;
  if (rows == 0 || g->width == 0) return cudaSuccess;
  const int64_t blocks = lath_blocks(rows, ROW_LANES);
  const dim3 grid((unsigned)(blocks < MOST_BLOCKS ? blocks : (int64_t)MOST_BLOCKS), (unsigned)g->steps);
  if (dtype == LATH_F32) LATH_LAUNCH((lstm_move<float>), grid, dim3(LANES, ROW_LANES), 0, stream, *g);
  if (dtype == LATH_F64) LATH_LAUNCH((lstm_move<double>), grid, dim3(LANES, ROW_LANES), 0, stream, *g);
  return cudaGetLastError();
}

/* ---- transposed ----------------------------------------------------------------------------------------------------------- */

/* Tiles of 32 x 32 go through shared memory, so that both sides are read and written along rows. */
/* launch: lstm_transpose threads=256 shared=0 */
template <class T>
static __global__ void __launch_bounds__(LANES *ROW_LANES)
    lstm_transpose(int64_t rows, int64_t cols, const T *from, int64_t width, T *to, int64_t s_to) {
  __shared__ T tile[TILE][TILE + 1];
  const int64_t col = (int64_t)blockIdx.x * TILE;
  for (int64_t row = (int64_t)blockIdx.y * TILE; row < width; row += (int64_t)gridDim.y * TILE) {
    for (int i = (int)threadIdx.y; i < TILE; i += ROW_LANES) {
      const bool inside = row + i < rows && col + threadIdx.x < cols;
      tile[i][threadIdx.x] = inside ? from[(row + i) * cols + col + threadIdx.x] : (T)0;
    }
    __syncthreads();
    for (int i = (int)threadIdx.y; i < TILE; i += ROW_LANES)
      if (col + i < cols && row + threadIdx.x < width) to[(col + i) * s_to + row + threadIdx.x] = tile[threadIdx.x][i];
    __syncthreads();
  }
}

template <class T>
static void launch_transpose(int64_t rows, int64_t cols, const void *from, int64_t width, void *to, int64_t s_to,
                             void *stream) {
  const int64_t down = lath_blocks(width, TILE);
  const dim3 grid((unsigned)lath_blocks(cols, TILE), (unsigned)(down < MOST_GRID_Y ? down : (int64_t)MOST_GRID_Y));
  LATH_LAUNCH((lstm_transpose<T>), grid, dim3(LANES, ROW_LANES), 0, stream, rows, cols, static_cast<const T *>(from), width,
              static_cast<T *>(to), s_to);
}

extern "C" int lath_cuda_lstm_transpose(lath_dtype dtype, int64_t rows, int64_t cols, const void *from, int64_t width, void *to,
                                        int64_t s_to, void *stream) {
  if (cols == 0 || width == 0) return cudaSuccess;
  if (cols > (int64_t)TILE * INT32_MAX) return cudaErrorInvalidValue;
  if (dtype == LATH_F32) launch_transpose<float>(rows, cols, from, width, to, s_to, stream);
  if (dtype == LATH_F64) launch_transpose<double>(rows, cols, from, width, to, s_to, stream);
  return cudaGetLastError();
}
