/* SPDX-License-Identifier: Apache-2.0
 * lt.c - one product with its bias by cuBLASLt.
 *
 * cuBLASLt is asked for a kernel at each call, as PyTorch does: it remembers the kernels of the last thousands of problems by
 * itself ("heuristics cache"), with everything that its choice depends on, and is safe on several threads. A second memory, of
 * ours, would have to know all of that too. The descriptors are plain host memory. */
#include "gemm/lt.h"

#include "core/arena.h"
#include "core/blas.h"
#include "core/check.h"
#include "gemm/columns.h"

int lath_lt_adds_bias(lath_dtype dtype, const struct lath_cuda *cuda) {
  return dtype != LATH_F64 && lath_cuda_has_blas(cuda) && lath_blas()->lt;
}

size_t lath_lt_workspace(lath_dtype dtype, const struct lath_cuda *cuda, const struct lath_device *device) {
  if (!lath_lt_adds_bias(dtype, cuda)) return 0;
  /* The alignment comes on top: the caller's buffer starts where it likes. */
  return LATH_LT_ALIGNMENT + (device->capability >= 90 ? LATH_LT_WORKSPACE_HOPPER : LATH_LT_WORKSPACE);
}

struct lath_lt_room lath_lt_take(struct lath_arena *arena, lath_dtype dtype, const void *bias, const void *other_bias,
                                 const struct lath_cuda *cuda, const struct lath_device *device) {
  const size_t bytes = bias || other_bias ? lath_lt_workspace(dtype, cuda, device) : 0;
  return (struct lath_lt_room){bytes ? lath_take(arena, 1, (int64_t)(bytes / sizeof(float))) : NULL, bytes};
}

/* ---- what suits it ------------------------------------------------------------------------------------------------------- */

struct room {
  void *data;
  uint64_t bytes;
};

/* The part of the workspace that begins on a multiple of LATH_LT_ALIGNMENT. */
static struct room aligned_room(const struct lath_cuda_gemm *p) {
  const size_t skipped = (size_t)(-(uintptr_t)p->workspace % LATH_LT_ALIGNMENT);
  if (!p->workspace || p->workspace_bytes <= skipped) return (struct room){NULL, 0};
  return (struct room){(char *)p->workspace + skipped, p->workspace_bytes - skipped};
}

/* The largest power of two, up to what kernels ask for, that an address is a multiple of. Strides are in the layouts. */
static uint32_t alignment(const void *data) {
  uint32_t bytes = LATH_LT_ALIGNMENT;
  while ((uintptr_t)data % bytes) bytes /= 2;
  return bytes;
}

/* How the handle wants sums of this type to be formed. 0: in a way that we cannot pass on. */
static int choose_compute(lath_dtype dtype, const struct lath_cuda *cuda, cublasComputeType_t *compute) {
  *compute = CUBLAS_COMPUTE_32F;
  switch (lath_blas_math(cuda->blas)) {
    case CUBLAS_DEFAULT_MATH:
      return 1;
    case CUBLAS_TF32_TENSOR_OP_MATH:
      if (dtype == LATH_F32) *compute = CUBLAS_COMPUTE_32F_FAST_TF32;
      return 1;
    default:
      return 0;
  }
}

/* An extent of 1 along the bias: kernels for GPUs before Ampere forgot it in some columns, and there is nothing to win.
 * See the reproduction at github.com/dfyz/cublaslt-bias-epilogue. */
static int suits(const struct lath_cuda_gemm *p, const struct lath_product_columns *m, const struct lath_cuda *cuda) {
  return lath_lt_adds_bias(p->c_type, cuda) && p->a_type == p->c_type && p->n > 1 && lath_columns_fit_int(m);
}

/* ---- what cuBLASLt is told ----------------------------------------------------------------------------------------------- */

/* In its terms: d (n, m) = op(first) op(second), where first is our b and second our a. */
struct problem {
  cublasLtMatmulDescOpaque_t operation;
  cublasLtMatrixLayoutOpaque_t first, second, d;
  cublasLtMatmulPreferenceOpaque_t preference;
};

static int set_operation(const struct lath_blas_lt *lt, cublasLtMatmulDesc_t operation, cublasLtMatmulDescAttributes_t name,
                         const void *value, size_t size) {
  return lt->set_operation(operation, name, value, size) == CUBLAS_STATUS_SUCCESS;
}

static int describe_operation(const struct lath_blas_lt *lt, const struct lath_cuda_gemm *p,
                              const struct lath_product_columns *m, cublasComputeType_t compute,
                              cublasLtMatmulDesc_t operation) {
  const int32_t op_first = (int32_t)m->b.op, op_second = (int32_t)m->a.op;
  const uint32_t epilogue = CUBLASLT_EPILOGUE_BIAS;
  return lt->init_operation(operation, sizeof *operation, compute, CUDA_R_32F) == CUBLAS_STATUS_SUCCESS &&
         set_operation(lt, operation, CUBLASLT_MATMUL_DESC_TRANSA, &op_first, sizeof op_first) &&
         set_operation(lt, operation, CUBLASLT_MATMUL_DESC_TRANSB, &op_second, sizeof op_second) &&
         set_operation(lt, operation, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue) &&
         set_operation(lt, operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &p->bias, sizeof p->bias);
}

static int describe_matrix(const struct lath_blas_lt *lt, cudaDataType_t type, const struct lath_columns *m,
                           cublasLtMatrixLayout_t layout) {
  return lt->init_layout(layout, sizeof *layout, type, (uint64_t)m->rows, (uint64_t)m->cols, m->ld) == CUBLAS_STATUS_SUCCESS;
}

static int prefer(const struct lath_blas_lt *lt, cublasLtMatmulPreference_t preference,
                  cublasLtMatmulPreferenceAttributes_t name, const void *value, size_t size) {
  return lt->set_preference(preference, name, value, size) == CUBLAS_STATUS_SUCCESS;
}

/* Parts of a sum may be stored in fp32 only: the result is rounded once. */
static int describe_preference(const struct lath_blas_lt *lt, const struct lath_cuda_gemm *p, const struct room *room,
                               cublasLtMatmulPreference_t preference) {
  const uint32_t reduction = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
  const uint32_t first = alignment(p->b), second = alignment(p->a), d = alignment(p->c);
  return lt->init_preference(preference, sizeof *preference) == CUBLAS_STATUS_SUCCESS &&
         prefer(lt, preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &room->bytes, sizeof room->bytes) &&
         prefer(lt, preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reduction, sizeof reduction) &&
         prefer(lt, preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &first, sizeof first) &&
         prefer(lt, preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &second, sizeof second) &&
         prefer(lt, preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &d, sizeof d) &&
         prefer(lt, preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &d, sizeof d);
}

static int describe(const struct lath_blas_lt *lt, const struct lath_cuda_gemm *p, const struct lath_product_columns *m,
                    cublasComputeType_t compute, const struct room *room, struct problem *problem) {
  const cudaDataType_t type = lath_blas_type(p->c_type);
  return describe_operation(lt, p, m, compute, &problem->operation) && describe_matrix(lt, type, &m->b, &problem->first) &&
         describe_matrix(lt, type, &m->a, &problem->second) && describe_matrix(lt, type, &m->c, &problem->d) &&
         describe_preference(lt, p, room, &problem->preference);
}

/* ---- the call ------------------------------------------------------------------------------------------------------------ */

/* A handle of cuBLAS may be used as one of cuBLASLt "with a simple cast", says the documentation of cublasLtHandle_t. */
static cublasLtHandle_t lt_handle(const struct lath_cuda *cuda) { return (cublasLtHandle_t)cuda->blas; }

static int choose_kernel(const struct lath_blas_lt *lt, struct problem *q, const struct lath_cuda *cuda,
                         const struct room *room, cublasLtMatmulHeuristicResult_t *chosen) {
  int count = 0;
  const cublasStatus_t status =
      lt->choose(lt_handle(cuda), &q->operation, &q->first, &q->second, &q->d, &q->d, &q->preference, 1, chosen, &count);
  return status == CUBLAS_STATUS_SUCCESS && count > 0 && chosen->state == CUBLAS_STATUS_SUCCESS &&
         chosen->workspaceSize <= room->bytes;
}

lath_status lath_lt_product(const struct lath_cuda_gemm *p, struct lath_cuda *cuda, int *done) {
  const struct lath_blas_lt *lt = lath_blas()->lt;
  const struct lath_product_columns columns = lath_product_columns(p);
  const struct room room = aligned_room(p);
  const float one = 1.f, zero = 0.f;
  struct problem q;
  cublasComputeType_t compute;
  cublasLtMatmulHeuristicResult_t chosen;
  *done = 0;
  if (!suits(p, &columns, cuda) || !choose_compute(p->c_type, cuda, &compute)) return LATH_OK;
  if (!describe(lt, p, &columns, compute, &room, &q) || !choose_kernel(lt, &q, cuda, &room, &chosen)) return LATH_OK;
  const cublasStatus_t status =
      lt->multiply(lt_handle(cuda), &q.operation, &one, p->b, &q.first, p->a, &q.second, &zero, p->c, &q.d, p->c, &q.d,
                   &chosen.algo, room.data, (size_t)room.bytes, (cudaStream_t)cuda->stream);
  if (status == CUBLAS_STATUS_NOT_SUPPORTED) return LATH_OK;
  *done = 1;
  return lath_blas_check(cuda, (int)status);
}
