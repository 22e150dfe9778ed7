/* SPDX-License-Identifier: Apache-2.0
 *
 * device_cuda.c - tensors on an NVIDIA GPU: torch's current stream and BLAS handle, its device guard, its caching allocator.
 *
 * This is the only file of the binding that knows what a stream is. Nothing here waits for the device.
 */
#include "codes.h"
#include "device.h"
#include "device_plan.h"
#include "lath_cuda.h"
#include "targets_cuda.h"

const struct device device = {
    .name = "a CUDA device",
    .dtypes = "torch.float32, torch.float64, torch.bfloat16 or torch.float16",
    .last_dtype = LATH_F16,
    .type = aoti_torch_device_type_cuda,
};

lath_dtype device_p_dtype(lath_dtype dtype) { return dtype; }

/* ---- which device ------------------------------------------------------------------------------------------------------------ */

static bool fail_type(struct call *call, const char *name, int32_t type) {
  const char *got = type == aoti_torch_device_type_cpu() ? "the CPU" : "a device of another kind";
  if (!call->device_from) return call_fail(call, name, "got a tensor on %s, expected a CUDA device like another argument", got);
  return call_fail(call, name, "got a tensor on %s, expected cuda:%d like %s", got, call->device_index, call->device_from);
}

bool device_check(struct call *call, const char *name, AtenTensorHandle tensor) {
  int32_t type, index;
  if (aoti_torch_get_device_type(tensor, &type) || aoti_torch_get_device_index(tensor, &index))
    return call_fail(call, name, "torch does not say which device it is on; expected a CUDA device");
  if (type != codes.device) return fail_type(call, name, type);
  if (!call->device_from) {
    call->device_index = index;
    call->device_from = name;
  }
  return index == call->device_index || call_fail(call, name, "got a tensor on cuda:%d, expected cuda:%d like %s", index,
                                                  call->device_index, call->device_from);
}

void device_new_memory(void *data, size_t bytes) { (void)data, (void)bytes; /* torch's caching allocator keeps its pages */ }

/* ---- workspace --------------------------------------------------------------------------------------------------------------- */

/* A tensor: torch's allocator gives its memory to nobody else before the work of this call on the stream is done, and in a capture
 * it belongs to the graph. */
bool device_take_workspace(struct call *call, size_t bytes, void **workspace) {
  AtenTensorHandle tensor;
  *workspace = NULL;
  if (bytes == 0) return true;
  const int64_t size = (int64_t)bytes;
  if (!call_new_tensor(call, "workspace", 1, &size, aoti_torch_dtype_uint8(), &tensor)) return false;
  call_own(call, tensor);
  return torch_get_mutable_data_ptr(tensor, workspace) == 0 ||
         call_fail(call, "workspace", "torch gives no pointer to its data");
}

void device_give_workspace(struct call *call) { (void)call; /* one of the tensors that call_run() releases */ }

/* ---- stream, guard, handle --------------------------------------------------------------------------------------------------- */

struct lent {
  struct lath_cuda cuda;
  CUDAGuardHandle guard;
};

static bool enter(struct call *call, struct lent *lent) {
  *lent = (struct lent){.cuda = {.device = call->device_index}};
  if (aoti_torch_create_cuda_guard(call->device_index, &lent->guard))
    return call_fail(call, NULL, "torch cannot make cuda:%d the current device", call->device_index);
  if (aoti_torch_get_current_cuda_stream(call->device_index, &lent->cuda.stream)) {
    aoti_torch_delete_cuda_guard(lent->guard);
    return call_fail(call, NULL, "torch gives no current stream of cuda:%d", call->device_index);
  }
  /* Without the library that the handle belongs to, there is nothing to call on it. */
  if (lath_cuda_blas_name() && torch_get_current_cuda_blas_handle(&lent->cuda.blas)) lent->cuda.blas = NULL;
  return true;
}

enum { INSUFFICIENT_DRIVER = 35, INVALID_DEVICE_FUNCTION = 98, NO_KERNEL_IMAGE = 209, UNSUPPORTED_PTX = 222 }; /* cudaError_t */

static bool fail_device(struct call *call, const struct lath_cuda *cuda) {
  const int error = cuda->error;
  const char *text = lath_cuda_error_text(error);
  if (error == NO_KERNEL_IMAGE || error == INVALID_DEVICE_FUNCTION)
    return call_fail(call, NULL, "cuda:%d reported error %d, %s; liblath_cuda.so holds code for %s, see lath.info()",
                     cuda->device, error, text, lath_cuda_targets());
  const bool driver = error == INSUFFICIENT_DRIVER || error == UNSUPPORTED_PTX;
  return call_fail(call, NULL, "cuda:%d reported error %d, %s%s", cuda->device, error, text,
                   driver ? "; a newer NVIDIA driver is needed" : "");
}

static bool check(struct call *call, const struct lent *lent, lath_status status) {
  return status == LATH_DEVICE_FAILED && lent->cuda.error ? fail_device(call, &lent->cuda) : call_check(call, status);
}

static bool leave(const struct lent *lent, bool ok) {
  aoti_torch_delete_cuda_guard(lent->guard);
  return ok;
}

/* ---- entries ----------------------------------------------------------------------------------------------------------------- */

/* Each query and entry has the same form, but for a scalar that some entries take between the struct and the device. */
#define WITH_WORKSPACE(call, lent, query, args, entry, ...)                    \
  (check(call, lent, query(args, &(lent)->cuda, &(args)->workspace_bytes)) &&  \
   device_take_workspace(call, (args)->workspace_bytes, &(args)->workspace) && \
   check(call, lent, entry(__VA_ARGS__, &(lent)->cuda)))

bool device_linear(struct call *call, struct lath_linear *args) {
  struct lent lent;
  return enter(call, &lent) &&
         leave(&lent, WITH_WORKSPACE(call, &lent, lath_cuda_linear_workspace, args, lath_cuda_linear, args));
}

bool device_lowrank_linear(struct call *call, struct lath_lowrank_linear *args) {
  struct lent lent;
  return enter(call, &lent) &&
         leave(&lent, WITH_WORKSPACE(call, &lent, lath_cuda_lowrank_linear_workspace, args, lath_cuda_lowrank_linear, args));
}

bool device_lowrank_linear_backward(struct call *call, struct lath_lowrank_linear *args) {
  struct lent lent;
  return enter(call, &lent) && leave(&lent, WITH_WORKSPACE(call, &lent, lath_cuda_lowrank_linear_backward_workspace, args,
                                                           lath_cuda_lowrank_linear_backward, args));
}

bool device_oialr_linear(struct call *call, struct lath_oialr_linear *args) {
  struct lent lent;
  return enter(call, &lent) &&
         leave(&lent, WITH_WORKSPACE(call, &lent, lath_cuda_oialr_linear_workspace, args, lath_cuda_oialr_linear, args));
}

bool device_oialr_linear_backward(struct call *call, struct lath_oialr_linear *args) {
  struct lent lent;
  return enter(call, &lent) && leave(&lent, WITH_WORKSPACE(call, &lent, lath_cuda_oialr_linear_backward_workspace, args,
                                                           lath_cuda_oialr_linear_backward, args));
}

bool device_lowrank_lstm(struct call *call, struct lath_lowrank_lstm *args) {
  struct lent lent;
  return enter(call, &lent) &&
         leave(&lent, WITH_WORKSPACE(call, &lent, lath_cuda_lowrank_lstm_workspace, args, lath_cuda_lowrank_lstm, args));
}

bool device_lowrank_lstm_backward(struct call *call, struct lath_lowrank_lstm *args) {
  struct lent lent;
  return enter(call, &lent) && leave(&lent, WITH_WORKSPACE(call, &lent, lath_cuda_lowrank_lstm_backward_workspace, args,
                                                           lath_cuda_lowrank_lstm_backward, args));
}

bool device_frobenius(struct call *call, struct lath_frobenius *args, void *value) {
  struct lent lent;
  return enter(call, &lent) &&
         leave(&lent, WITH_WORKSPACE(call, &lent, lath_cuda_frobenius_workspace, args, lath_cuda_frobenius, args, value));
}

bool device_frobenius_backward(struct call *call, struct lath_frobenius *args, const void *scale) {
  struct lent lent;
  return enter(call, &lent) && leave(&lent, WITH_WORKSPACE(call, &lent, lath_cuda_frobenius_workspace, args,
                                                           lath_cuda_frobenius_backward, args, scale));
}

bool device_lowrank_linear_plan(struct call *call, const struct lath_lowrank_linear *args, bool backward,
                                struct lath_lowrank_plan *plan) {
  struct lent lent;
  return enter(call, &lent) &&
         leave(&lent, check(call, &lent, lath_cuda_lowrank_linear_plan(args, &lent.cuda, backward, plan)));
}

bool device_oialr_linear_plan(struct call *call, const struct lath_oialr_linear *args, bool training,
                              struct lath_oialr_plan *plan) {
  struct lent lent;
  return enter(call, &lent) && leave(&lent, check(call, &lent, lath_cuda_oialr_linear_plan(args, &lent.cuda, training, plan)));
}
