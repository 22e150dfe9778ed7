/* SPDX-License-Identifier: Apache-2.0
 * rows.cu - a row copied to all rows of a matrix (where a product starts from its bias), and the sum of the rows of a matrix
 * (the gradient of a bias). Both are bound by memory. */
#include "gemm/rows.h"

#include "core/numbers.h"

enum { FILL_THREADS = 128, LANES = 32, ROW_LANES = 8, LEAST_ROWS = 64, MOST_PARTS = 1024, MOST_GRID_Y = 65535 };

/* ---- fill: elements are bits here, up to 16 bytes at a time -------------------------------------------------------------- */

/* launch: fill_rows threads=128 shared=0 */
template <class Unit>
static __global__ void __launch_bounds__(FILL_THREADS)
    fill_rows(int64_t rows, int64_t cols, const Unit *row, Unit *c, int64_t s_c) {
  const int64_t j = (int64_t)blockIdx.x * FILL_THREADS + threadIdx.x;
  if (j >= cols) return;
  const Unit value = row[j];
  for (int64_t i = blockIdx.y; i < rows; i += gridDim.y) c[i * s_c + j] = value;
}

template <class Unit>
static void launch_fill(int64_t rows, int64_t cols, const void *row, void *c, int64_t s_c, void *stream) {
  const int64_t across = (cols + FILL_THREADS - 1) / FILL_THREADS;
  const dim3 grid((unsigned)across, (unsigned)(rows < MOST_GRID_Y ? rows : (int64_t)MOST_GRID_Y));
  LATH_LAUNCH((fill_rows<Unit>), grid, dim3(FILL_THREADS), 0, stream, rows, cols, static_cast<const Unit *>(row),
              static_cast<Unit *>(c), s_c);
}

extern "C" int lath_cuda_fill_rows(lath_dtype dtype, int64_t rows, int64_t cols, const void *row, void *c, int64_t s_c,
                                   void *stream) {
  const int64_t bytes = (int64_t)lath_dtype_size(dtype), vector = 16 / bytes;
  if (rows == 0 || cols == 0) return cudaSuccess;
  if (cols > (int64_t)FILL_THREADS * INT32_MAX) return cudaErrorInvalidValue;
  if (((uintptr_t)row | (uintptr_t)c | (uintptr_t)(cols * bytes) | (uintptr_t)(rows > 1 ? s_c * bytes : 0)) % 16 == 0)
    launch_fill<lath_16_bytes>(rows, cols / vector, row, c, s_c / vector, stream);
  else if (bytes == 2)
    launch_fill<uint16_t>(rows, cols, row, c, s_c, stream);
  else if (bytes == 4)
    launch_fill<uint32_t>(rows, cols, row, c, s_c, stream);
  else
    launch_fill<uint64_t>(rows, cols, row, c, s_c, stream);
  return cudaGetLastError();
}

/* ---- sum: a block adds 32 columns of one part of the rows, 8 rows at a time; then the parts are added in the same way ---- */

/* launch: sum_rows threads=256 shared=0 */
template <class T, class Out>
static __global__ void __launch_bounds__(LANES *ROW_LANES)
    sum_rows(int64_t rows, int64_t cols, const T *a, int64_t s_a, Out *sums, int64_t part_rows) {
  typedef typename lath_sum_of<T>::type S;
  __shared__ S lane_sum[ROW_LANES][LANES];
  const int64_t j = (int64_t)blockIdx.x * LANES + threadIdx.x;
  const int64_t from = (int64_t)blockIdx.y * part_rows, to = from + part_rows < rows ? from + part_rows : rows;
  S sum = 0;
#pragma unroll 4
  for (int64_t i = from + threadIdx.y; i < to; i += ROW_LANES) sum += j < cols ? (S)lath_number(a[i * s_a + j]) : (S)0;
  lane_sum[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || j >= cols) return;
  for (int lane = 1; lane < ROW_LANES; lane++) sum += lane_sum[lane][threadIdx.x];
  lath_round(sum, &sums[blockIdx.y * cols + j]);
}

template <class T, class Out>
static void launch_sum(int64_t rows, int64_t cols, const T *a, int64_t s_a, Out *sums, int64_t parts, void *stream) {
  const dim3 grid((unsigned)((cols + LANES - 1) / LANES), (unsigned)parts);
  const int64_t part_rows = (rows + parts - 1) / parts;
  LATH_LAUNCH((sum_rows<T, Out>), grid, dim3(LANES, ROW_LANES), 0, stream, rows, cols, a, s_a, sums, part_rows);
}

extern "C" int64_t lath_cuda_sum_rows_parts(int64_t rows, int64_t cols, int multiprocessors) {
  const int64_t across = (cols + LANES - 1) / LANES, wanted = 4 * (int64_t)multiprocessors;
  int64_t parts = across > 0 && across < wanted ? wanted / across : 1;
  if (parts > rows / LEAST_ROWS) parts = rows / LEAST_ROWS;
  if (parts > MOST_PARTS) parts = MOST_PARTS;
  return parts > 1 ? parts : 1;
}

template <class T>
static void add_parts(int64_t parts, int64_t cols, const void *partial, void *sums, void *stream) {
  typedef typename lath_sum_of<T>::type S;
  launch_sum(parts, cols, static_cast<const S *>(partial), cols, static_cast<T *>(sums), 1, stream);
}

extern "C" int lath_cuda_add_parts(lath_dtype dtype, int64_t parts, int64_t cols, const void *partial, void *sums,
                                   void *stream) {
  if (cols == 0) return cudaSuccess;
  if (cols > (int64_t)LANES * INT32_MAX) return cudaErrorInvalidValue;
  if (dtype == LATH_F32) add_parts<float>(parts, cols, partial, sums, stream);
  if (dtype == LATH_F64) add_parts<double>(parts, cols, partial, sums, stream);
  if (dtype == LATH_F16) add_parts<__half>(parts, cols, partial, sums, stream);
  if (dtype == LATH_BF16) add_parts<__nv_bfloat16>(parts, cols, partial, sums, stream);
  return cudaGetLastError();
}

template <class T>
static void sum_type(int64_t rows, int64_t cols, const void *a, int64_t s_a, void *sums, void *partial, int64_t parts,
                     void *stream) {
  typedef typename lath_sum_of<T>::type S;
  const T *from = static_cast<const T *>(a);
  T *out = static_cast<T *>(sums);
  S *part = static_cast<S *>(partial);
  if (parts == 1) return launch_sum(rows, cols, from, s_a, out, 1, stream);
  launch_sum(rows, cols, from, s_a, part, parts, stream);
  add_parts<T>(parts, cols, part, sums, stream);
}

extern "C" int lath_cuda_sum_rows(lath_dtype dtype, int64_t rows, int64_t cols, const void *a, int64_t s_a, void *sums,
                                  void *partial, int multiprocessors, void *stream) {
  const int64_t parts = lath_cuda_sum_rows_parts(rows, cols, multiprocessors);
  if (cols == 0) return cudaSuccess;
  if (cols > (int64_t)LANES * INT32_MAX) return cudaErrorInvalidValue;
  if (dtype == LATH_F32) sum_type<float>(rows, cols, a, s_a, sums, partial, parts, stream);
  if (dtype == LATH_F64) sum_type<double>(rows, cols, a, s_a, sums, partial, parts, stream);
  if (dtype == LATH_F16) sum_type<__half>(rows, cols, a, s_a, sums, partial, parts, stream);
  if (dtype == LATH_BF16) sum_type<__nv_bfloat16>(rows, cols, a, s_a, sums, partial, parts, stream);
  return cudaGetLastError();
}
