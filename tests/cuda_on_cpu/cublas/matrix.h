// SPDX-License-Identifier: Apache-2.0
//
// matrix.h - what the stand-ins of cuBLAS and cuBLASLt share: column-major matrices of any type, as doubles.

#ifndef LATH_TESTS_CUDA_ON_CPU_CUBLAS_MATRIX_H_
#define LATH_TESTS_CUDA_ON_CPU_CUBLAS_MATRIX_H_

#include <cublas_v2.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <string.h>

#include <vector>

namespace fake_blas {

struct Matrix {
  void *data;
  cudaDataType_t type;
  int64_t ld;
};

inline double Load(const Matrix &matrix, int64_t row, int64_t column) {
  const size_t i = static_cast<size_t>(row + column * matrix.ld);
  switch (matrix.type) {
    case CUDA_R_64F:
      return static_cast<const double *>(matrix.data)[i];
    case CUDA_R_16F:
      return __half2float(static_cast<const __half *>(matrix.data)[i]);
    case CUDA_R_16BF:
      return __bfloat162float(static_cast<const __nv_bfloat16 *>(matrix.data)[i]);
    default:
      return static_cast<const float *>(matrix.data)[i];
  }
}

inline void Store(const Matrix &matrix, int64_t row, int64_t column, double value) {
  const size_t i = static_cast<size_t>(row + column * matrix.ld);
  switch (matrix.type) {
    case CUDA_R_64F:
      static_cast<double *>(matrix.data)[i] = value;
      break;
    case CUDA_R_16F:
      static_cast<__half *>(matrix.data)[i] = __float2half_rn(static_cast<float>(value));
      break;
    case CUDA_R_16BF:
      static_cast<__nv_bfloat16 *>(matrix.data)[i] = __float2bfloat16_rn(static_cast<float>(value));
      break;
    default:
      static_cast<float *>(matrix.data)[i] = static_cast<float>(value);
  }
}

inline double Tf32(double value) {
  const float narrow = static_cast<float>(value);
  unsigned bits;
  memcpy(&bits, &narrow, sizeof(bits));
  bits = (bits + 0x1000) & ~0x1fffu;
  float rounded;
  memcpy(&rounded, &bits, sizeof(rounded));
  return rounded;
}

// op(matrix) as rows x columns doubles, row-major.
inline std::vector<double> Operand(const Matrix &matrix, cublasOperation_t op, int64_t rows, int64_t columns, bool tf32) {
  std::vector<double> values(static_cast<size_t>(rows * columns));
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = 0; j < columns; j++) {
      const double value = op == CUBLAS_OP_N ? Load(matrix, i, j) : Load(matrix, j, i);
      values[static_cast<size_t>(i * columns + j)] = tf32 ? Tf32(value) : value;
    }
  return values;
}

}  // namespace fake_blas

// Of the emulator, which closes device memory to the host; null where it is not in the program.
extern "C" __attribute__((weak)) void emulator_open_memory(void);
extern "C" __attribute__((weak)) void emulator_close_memory(void);

#endif  // LATH_TESTS_CUDA_ON_CPU_CUBLAS_MATRIX_H_
