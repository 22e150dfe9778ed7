// SPDX-License-Identifier: Apache-2.0
//
// cublaslt.cc - a stand-in for cuBLASLt under its real name: one product, with or without a bias, column-major.
//
// The descriptors are the real ones, opaque structs of the toolkit's header; ours keep their fields inside. Attributes that
// lath does not set are unknown here. The "kernel" that is chosen makes use of all that it was promised: it wants the
// operation, the layouts and the alignments that it was chosen for, and writes the whole workspace. Sums are in double and
// rounded once.

#include "cublaslt.h"

#include <cstdio>
#include <cstring>
#include <mutex>
#include <type_traits>

#include "matrix.h"

namespace {

using fake_blas::Matrix;

thread_local FakeLtRecord record;
std::mutex memory_lock;  // the emulator opens device memory to the host for one at a time
thread_local FakeLtChoice next_choice = kFakeLtFound;

constexpr uint32_t kOperation = 0x4c744f70, kLayout = 0x4c744c61, kPreference = 0x4c745072, kKernel = 0x4c744b65;

struct Operation {
  uint32_t magic;
  cublasComputeType_t compute;
  int32_t scale_type, op_a, op_b;
  uint32_t epilogue;
  const void *bias;
};

struct Layout {
  uint32_t magic;
  int32_t type;
  uint64_t rows, cols;
  int64_t ld;
};

struct Preference {
  uint32_t magic, reduction, alignments[4];
  uint64_t workspace_bytes;
};

// A digest of what the kernel was chosen for, and what it counts on.
struct Kernel {
  uint32_t magic, fails;
  uint64_t problem, workspace_bytes;
  uint32_t alignments[4], bias_alignment;
};

// Our struct in the place of an opaque one.
template <class Ours, class Opaque>
Ours Read(const Opaque *opaque) {
  static_assert(sizeof(Ours) <= sizeof(Opaque) && std::is_trivially_copyable_v<Ours>);
  Ours ours = {};
  if (opaque) memcpy(&ours, opaque, sizeof(ours));
  return ours;
}

template <class Ours, class Opaque>
void Write(const Ours &ours, Opaque *opaque) {
  memcpy(opaque, &ours, sizeof(ours));
}

template <class T>
cublasStatus_t Take(T *field, const void *value, size_t size) {
  if (!value || size != sizeof(T)) return CUBLAS_STATUS_INVALID_VALUE;
  memcpy(field, value, sizeof(T));
  return CUBLAS_STATUS_SUCCESS;
}

// ---- what is refused --------------------------------------------------------------------------------------------------------

struct Problem {
  Operation operation;
  Layout a, b, c, d;
};

Problem ReadProblem(cublasLtMatmulDesc_t operation, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                    cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d) {
  return {Read<Operation>(operation), Read<Layout>(a), Read<Layout>(b), Read<Layout>(c), Read<Layout>(d)};
}

bool IsSupported(const Problem &p) {
  const int32_t type = p.a.type;
  if (p.b.type != type || p.c.type != type || p.d.type != type || p.operation.scale_type != CUDA_R_32F) return false;
  if (p.operation.compute == CUBLAS_COMPUTE_32F) return type == CUDA_R_32F || type == CUDA_R_16F || type == CUDA_R_16BF;
  return p.operation.compute == CUBLAS_COMPUTE_32F_FAST_TF32 && type == CUDA_R_32F;
}

bool HasSize(const Layout &layout, uint64_t rows, uint64_t cols, int32_t op) {
  return op == CUBLAS_OP_N ? layout.rows == rows && layout.cols == cols : layout.rows == cols && layout.cols == rows;
}

uint64_t Depth(const Problem &p) { return p.operation.op_a == CUBLAS_OP_N ? p.a.cols : p.a.rows; }

cublasStatus_t Check(cublasLtHandle_t handle, const Problem &p) {
  if (!handle) return CUBLAS_STATUS_NOT_INITIALIZED;
  if (p.operation.magic != kOperation) return CUBLAS_STATUS_INVALID_VALUE;
  for (const Layout &layout : {p.a, p.b, p.c, p.d}) {
    if (layout.magic != kLayout || layout.rows == 0 || layout.cols == 0) return CUBLAS_STATUS_INVALID_VALUE;
    if (layout.ld < static_cast<int64_t>(layout.rows)) return CUBLAS_STATUS_INVALID_VALUE;
  }
  const uint64_t m = p.d.rows, n = p.d.cols, k = Depth(p);
  if (!HasSize(p.a, m, k, p.operation.op_a) || !HasSize(p.b, k, n, p.operation.op_b) || !HasSize(p.c, m, n, CUBLAS_OP_N))
    return CUBLAS_STATUS_INVALID_VALUE;
  if (p.operation.epilogue == CUBLASLT_EPILOGUE_BIAS && !p.operation.bias) return CUBLAS_STATUS_INVALID_VALUE;
  return IsSupported(p) ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

// FNV-1a over everything but the bias's address.
uint64_t Digest(Problem p) {
  p.operation.bias = nullptr;
  unsigned char bytes[sizeof(p)];
  memcpy(bytes, &p, sizeof(p));
  uint64_t digest = 0xcbf29ce484222325u;
  for (const unsigned char byte : bytes) digest = (digest ^ byte) * 0x100000001b3u;
  return digest;
}

uint32_t AlignmentOf(const void *data) {
  uint32_t bytes = 256;
  while (reinterpret_cast<uintptr_t>(data) % bytes) bytes /= 2;
  return bytes;
}

// ---- the product ------------------------------------------------------------------------------------------------------------

void Compute(const Problem &p, float alpha, const void *a, const void *b, float beta, const void *c, void *d) {
  const int64_t m = static_cast<int64_t>(p.d.rows), n = static_cast<int64_t>(p.d.cols), depth = static_cast<int64_t>(Depth(p));
  const auto matrix = [](const void *data, const Layout &layout) {
    return Matrix{const_cast<void *>(data), static_cast<cudaDataType_t>(layout.type), layout.ld};
  };
  const bool tf32 = p.operation.compute == CUBLAS_COMPUTE_32F_FAST_TF32,
             with_bias = p.operation.epilogue == CUBLASLT_EPILOGUE_BIAS;
  const auto op_a = static_cast<cublasOperation_t>(p.operation.op_a);
  const cublasOperation_t op_b_transposed = p.operation.op_b == CUBLAS_OP_N ? CUBLAS_OP_T : CUBLAS_OP_N;
  const std::vector<double> first = fake_blas::Operand(matrix(a, p.a), op_a, m, depth, tf32);
  const std::vector<double> second = fake_blas::Operand(matrix(b, p.b), op_b_transposed, n, depth, tf32);
  const Matrix from = matrix(c, p.c), to = matrix(d, p.d), bias = matrix(p.operation.bias, p.d);
  for (int64_t j = 0; j < n; j++)
    for (int64_t i = 0; i < m; i++) {
      double sum = 0;
      for (int64_t k = 0; k < depth; k++)
        sum += first[static_cast<size_t>(i * depth + k)] * second[static_cast<size_t>(j * depth + k)];
      sum = alpha * sum + (beta != 0 ? beta * fake_blas::Load(from, i, j) : 0);
      fake_blas::Store(to, i, j, sum + (with_bias ? fake_blas::Load(bias, i, 0) : 0));
    }
}

cublasStatus_t Refuse(const char *why) {
  fprintf(stderr, "cuBLASLt stand-in: %s\n", why);
  return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t CheckKernel(const Kernel &kernel, const Problem &p, const void *a, const void *b, const void *c, const void *d,
                           const void *workspace, size_t workspace_bytes) {
  const void *const pointers[] = {a, b, c, d};
  if (kernel.magic != kKernel) return Refuse("no kernel");
  if (kernel.problem != Digest(p)) return Refuse("the kernel was chosen for another problem");
  for (int i = 0; i < 4; i++)
    if (!pointers[i] || AlignmentOf(pointers[i]) < kernel.alignments[i])
      return Refuse("an operand is less aligned than was promised");
  if (AlignmentOf(p.operation.bias) < kernel.bias_alignment) return Refuse("the bias is less aligned than it was");
  if (workspace_bytes < kernel.workspace_bytes || (kernel.workspace_bytes && !workspace))
    return Refuse("the workspace is too small");
  if (workspace && AlignmentOf(workspace) < 16) return Refuse("the workspace is not aligned");
  return CUBLAS_STATUS_SUCCESS;
}

}  // namespace

extern "C" {

FakeLtRecord *fake_lt_record(void) { return &record; }
void fake_lt_choose(FakeLtChoice choice) { next_choice = choice; }

cublasStatus_t cublasLtMatmulDescInit_internal(cublasLtMatmulDesc_t operation, size_t size, cublasComputeType_t compute,
                                               cudaDataType_t scale_type) {
  if (size < sizeof(*operation)) return CUBLAS_STATUS_ALLOC_FAILED;
  Write(Operation{kOperation, compute, scale_type, CUBLAS_OP_N, CUBLAS_OP_N, CUBLASLT_EPILOGUE_DEFAULT, nullptr}, operation);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t operation, cublasLtMatmulDescAttributes_t name,
                                              const void *value, size_t size) {
  Operation ours = Read<Operation>(operation);
  cublasStatus_t status = CUBLAS_STATUS_INVALID_VALUE;
  if (ours.magic != kOperation) return status;
  if (name == CUBLASLT_MATMUL_DESC_TRANSA) status = Take(&ours.op_a, value, size);
  if (name == CUBLASLT_MATMUL_DESC_TRANSB) status = Take(&ours.op_b, value, size);
  if (name == CUBLASLT_MATMUL_DESC_EPILOGUE) status = Take(&ours.epilogue, value, size);
  if (name == CUBLASLT_MATMUL_DESC_BIAS_POINTER) status = Take(&ours.bias, value, size);
  for (const int32_t op : {ours.op_a, ours.op_b})
    if (op != CUBLAS_OP_N && op != CUBLAS_OP_T) return CUBLAS_STATUS_INVALID_VALUE;
  if (ours.epilogue != CUBLASLT_EPILOGUE_DEFAULT && ours.epilogue != CUBLASLT_EPILOGUE_BIAS) return CUBLAS_STATUS_INVALID_VALUE;
  if (status == CUBLAS_STATUS_SUCCESS) Write(ours, operation);
  return status;
}

cublasStatus_t cublasLtMatrixLayoutInit_internal(cublasLtMatrixLayout_t layout, size_t size, cudaDataType type, uint64_t rows,
                                                 uint64_t cols, int64_t ld) {
  if (size < sizeof(*layout)) return CUBLAS_STATUS_ALLOC_FAILED;
  Write(Layout{kLayout, type, rows, cols, ld}, layout);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceInit_internal(cublasLtMatmulPreference_t preference, size_t size) {
  if (size < sizeof(*preference)) return CUBLAS_STATUS_ALLOC_FAILED;
  Write(Preference{kPreference, CUBLASLT_REDUCTION_SCHEME_MASK, {256, 256, 256, 256}, 0}, preference);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t name, const void *value, size_t size) {
  Preference ours = Read<Preference>(preference);
  cublasStatus_t status = CUBLAS_STATUS_INVALID_VALUE;
  if (ours.magic != kPreference) return status;
  const int operand = name - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES;
  if (name == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES) status = Take(&ours.workspace_bytes, value, size);
  if (name == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK) status = Take(&ours.reduction, value, size);
  if (operand >= 0 && operand < 4) status = Take(&ours.alignments[operand], value, size);
  for (const uint32_t bytes : ours.alignments)
    if (bytes == 0 || (bytes & (bytes - 1))) return CUBLAS_STATUS_INVALID_VALUE;
  if (ours.reduction & ~static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_MASK)) return CUBLAS_STATUS_INVALID_VALUE;
  if (status == CUBLAS_STATUS_SUCCESS) Write(ours, preference);
  return status;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t operation, cublasLtMatrixLayout_t a,
                                              cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int most,
                                              cublasLtMatmulHeuristicResult_t *found, int *count) {
  const Problem problem = ReadProblem(operation, a, b, c, d);
  const Preference wanted = Read<Preference>(preference);
  if (wanted.magic != kPreference || most < 1 || !found || !count) return CUBLAS_STATUS_INVALID_VALUE;
  const cublasStatus_t status = Check(handle, problem);
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  record.choices++;
  record.compute = problem.operation.compute;
  record.alignment_a = wanted.alignments[0], record.alignment_b = wanted.alignments[1];
  record.alignment_c = wanted.alignments[2], record.alignment_d = wanted.alignments[3];
  record.reduction = wanted.reduction;
  record.workspace_bytes = wanted.workspace_bytes;
  *count = 0;
  *found = {};  // what is not counted is not valid, and looks as if it were
  if (next_choice == kFakeLtUnsupported) return CUBLAS_STATUS_NOT_SUPPORTED;
  if (next_choice == kFakeLtNone) return CUBLAS_STATUS_SUCCESS;
  Kernel kernel = {kKernel, next_choice == kFakeLtBadProduct, Digest(problem), wanted.workspace_bytes, {}, 1};
  memcpy(kernel.alignments, wanted.alignments, sizeof(kernel.alignments));
  if (problem.operation.bias) kernel.bias_alignment = AlignmentOf(problem.operation.bias);
  Write(kernel, &found->algo);
  found->workspaceSize = static_cast<size_t>(wanted.workspace_bytes);
  found->state = next_choice == kFakeLtBadState ? CUBLAS_STATUS_NOT_SUPPORTED : CUBLAS_STATUS_SUCCESS;
  *count = 1;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t operation, const void *alpha, const void *a,
                              cublasLtMatrixLayout_t a_layout, const void *b, cublasLtMatrixLayout_t b_layout, const void *beta,
                              const void *c, cublasLtMatrixLayout_t c_layout, void *d, cublasLtMatrixLayout_t d_layout,
                              const cublasLtMatmulAlgo_t *algo, void *workspace, size_t workspace_bytes, cudaStream_t stream) {
  const Problem problem = ReadProblem(operation, a_layout, b_layout, c_layout, d_layout);
  const Kernel kernel = Read<Kernel>(algo);
  cublasStatus_t status = Check(handle, problem);
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  status = CheckKernel(kernel, problem, a, b, c, d, workspace, workspace_bytes);
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  if (!alpha || !beta) return CUBLAS_STATUS_INVALID_VALUE;
  if (kernel.fails) return CUBLAS_STATUS_EXECUTION_FAILED;
  const std::lock_guard<std::mutex> lock(memory_lock);
  if (emulator_open_memory) emulator_open_memory();
  const auto fill = [&] {
    if (kernel.workspace_bytes) memset(workspace, 0xa5, static_cast<size_t>(kernel.workspace_bytes));
  };
  // At both ends of its work: what shares memory with the workspace is lost, be it read or written.
  fill();
  Compute(problem, *static_cast<const float *>(alpha), a, b, *static_cast<const float *>(beta), c, d);
  fill();
  if (emulator_close_memory) emulator_close_memory();
  record.products++;
  record.workspace = workspace;
  record.stream = stream;
  return CUBLAS_STATUS_SUCCESS;
}

}  // extern "C"
