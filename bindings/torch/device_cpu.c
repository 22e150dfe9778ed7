/* SPDX-License-Identifier: Apache-2.0
 * device_cpu.c - tensors in main memory: torch's thread pool, a workspace from the stack or kept from call to call. */
#include "codes.h"
#include "device.h"
#include "host.h"
#include "pages.h"
#include "unpack.h"
#include "workspace.h"

const struct device device = {
    .name = "the CPU",
    .dtypes = "torch.float32, torch.float64 or torch.bfloat16",
    .last_dtype = LATH_BF16,
    .type = aoti_torch_device_type_cpu,
};

lath_dtype device_p_dtype(lath_dtype dtype) { return codes_sum_dtype(dtype); }

bool device_check(struct call *call, const char *name, AtenTensorHandle tensor) { return unpack_on_host(call, name, tensor); }

void device_new_memory(void *data, size_t bytes) { pages_advise(data, bytes); }

bool device_take_workspace(struct call *call, size_t bytes, void **workspace) {
  *workspace = call->small_workspace;
  if (bytes <= CALL_SMALL_WORKSPACE) return true;
  *workspace = call->workspace = workspace_take(bytes);
  return *workspace || call_fail(call, "workspace", "out of memory for %zu bytes", bytes);
}

void device_give_workspace(struct call *call) { workspace_give(call->workspace); }

/* Each query and entry of the family has the same form. */
#define WITH_WORKSPACE(call, query, entry, args)                           \
  (call_check(call, query(args, &torch_host, &(args)->workspace_bytes)) && \
   device_take_workspace(call, (args)->workspace_bytes, &(args)->workspace) && call_check(call, entry(args, &torch_host)))

bool device_linear(struct call *call, struct lath_linear *args) {
  return WITH_WORKSPACE(call, lath_linear_workspace, lath_linear, args);
}

bool device_lowrank_linear(struct call *call, struct lath_lowrank_linear *args) {
  return WITH_WORKSPACE(call, lath_lowrank_linear_workspace, lath_lowrank_linear, args);
}

bool device_lowrank_linear_backward(struct call *call, struct lath_lowrank_linear *args) {
  return WITH_WORKSPACE(call, lath_lowrank_linear_backward_workspace, lath_lowrank_linear_backward, args);
}

bool device_lowrank_lstm(struct call *call, struct lath_lowrank_lstm *args) {
  return WITH_WORKSPACE(call, lath_lowrank_lstm_workspace, lath_lowrank_lstm, args);
}

bool device_lowrank_lstm_backward(struct call *call, struct lath_lowrank_lstm *args) {
  return WITH_WORKSPACE(call, lath_lowrank_lstm_backward_workspace, lath_lowrank_lstm_backward, args);
}

bool device_oialr_linear(struct call *call, struct lath_oialr_linear *args) {
  return WITH_WORKSPACE(call, lath_oialr_linear_workspace, lath_oialr_linear, args);
}

bool device_oialr_linear_backward(struct call *call, struct lath_oialr_linear *args) {
  return WITH_WORKSPACE(call, lath_oialr_linear_backward_workspace, lath_oialr_linear_backward, args);
}

bool device_frobenius(struct call *call, struct lath_frobenius *args, void *value) {
  double sum = 0.0;
  args->value = &sum;
  if (!WITH_WORKSPACE(call, lath_frobenius_workspace, lath_frobenius, args)) return false;
  if (args->dtype == LATH_F64)
    *(double *)value = sum;
  else
    *(float *)value = (float)sum;
  return true;
}

bool device_frobenius_backward(struct call *call, struct lath_frobenius *args, const void *scale) {
  args->scale = args->dtype == LATH_F64 ? *(const double *)scale : (double)*(const float *)scale;
  return WITH_WORKSPACE(call, lath_frobenius_workspace, lath_frobenius_backward, args);
}
