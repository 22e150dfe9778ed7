// SPDX-License-Identifier: Apache-2.0
//
// lowrank_cases.h - one call of an entry of the low-rank family on the device, with operands in guarded device memory and a
// workspace of exactly the queried size. Operands, oracles and comparisons are those of the processor's tests (tests/c).
//
// Only runtime calls touch device memory, so the same tests can run on a GPU.

#ifndef LATH_TESTS_CUDA_ON_CPU_LOWRANK_CASES_H_
#define LATH_TESTS_CUDA_ON_CPU_LOWRANK_CASES_H_

#include <cuda_runtime_api.h>

#include <cmath>

#include "cases.h"
#include "device_memory.h"
#include "lath_cuda.h"
#include "leg.h"

#if !defined(LATH_TEST_NO_BLAS)
#include <cublas_v2.h>
#endif

namespace cuda_test {

using lath_test::BackwardRun;
using lath_test::Choices;
using lath_test::Completed;
using lath_test::ForwardRun;
using lath_test::Layout;
using lath_test::LowrankInputs;
using lath_test::LowrankOracle;
using lath_test::LowrankShape;
using lath_test::Multiply;
using lath_test::Numbers;
using lath_test::Operand;
using lath_test::Scaled;
using lath_test::Transpose;
using lath_test::Values;

constexpr lath_dtype kDtypes[] = {LATH_F32, LATH_F64, LATH_BF16, LATH_F16};

inline bool Is16Bit(lath_dtype dtype) { return dtype == LATH_BF16 || dtype == LATH_F16; }

constexpr int kPlanned = -1;
constexpr int kRoutes[] = {kPlanned, LATH_LOWRANK_PRODUCTS, LATH_LOWRANK_FEW, LATH_LOWRANK_FUSED, LATH_LOWRANK_MERGED};

inline std::string RouteName(const testing::TestParamInfo<int> &info) {
  static const char *const kNames[] = {"planned", "merged", "products", "fused", "few"};
  return kNames[info.param == kPlanned ? 0 : info.param - LATH_LOWRANK_MERGED + 1];
}

// The thread sanitizer takes a tenth of a second for each block of threads, and which numbers a kernel adds makes no difference
// to it: its build runs one case in 12.
inline bool LeftOut(uint32_t seed) { return kLeg == Leg::kThread && lath_test::Mix(seed) % 12 != 0; }

// ---- device memory ---------------------------------------------------------------------------------------------------

// Bytes on the device between two guard bands, all filled with 0xff, which is a NaN in every element type.
class Guarded {
 public:
  explicit Guarded(size_t bytes, size_t misalignment = 0) : bytes_(bytes), front_(kGuard + misalignment) {
    const std::vector<unsigned char> pattern(front_ + bytes + kGuard, 0xff);
    EXPECT_EQ(cudaMalloc(&block_, pattern.size()), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(block_, pattern.data(), pattern.size(), cudaMemcpyHostToDevice), cudaSuccess);
  }
  ~Guarded() { cudaFree(block_); }
  Guarded(const Guarded &) = delete;
  Guarded &operator=(const Guarded &) = delete;

  void *data() const { return static_cast<unsigned char *>(block_) + front_; }

  bool Intact() const {
    std::vector<unsigned char> all(front_ + bytes_ + kGuard);
    EXPECT_EQ(cudaMemcpy(all.data(), block_, all.size(), cudaMemcpyDeviceToHost), cudaSuccess);
    for (size_t k = 0; k < all.size(); ++k) {
      if ((k < front_ || k >= front_ + bytes_) && all[k] != 0xff) return false;
    }
    return true;
  }

 private:
  static constexpr size_t kGuard = 256;  // a multiple of the alignment that cudaMalloc gives
  void *block_ = nullptr;
  size_t bytes_, front_;
};

// A copy of an operand on the device: same strides, same misalignment.
class OnDevice {
 public:
  explicit OnDevice(const Operand &operand)
      : bytes_(Bytes(operand)), guarded_(bytes_, reinterpret_cast<uintptr_t>(operand.data()) % 64) {
    EXPECT_EQ(cudaMemcpy(data(), operand.data(), bytes_, cudaMemcpyHostToDevice), cudaSuccess);
  }
  void *data() const { return guarded_.data(); }

  // Waits for the device; the comparison then sees what was written to gaps between rows as well.
  void CopyTo(Operand *operand) const {
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    EXPECT_EQ(cudaMemcpy(operand->data(), data(), bytes_, cudaMemcpyDeviceToHost), cudaSuccess);
    EXPECT_TRUE(guarded_.Intact()) << "bytes outside an operand were written";
  }

 private:
  static size_t Bytes(const Operand &operand) {
    int64_t last = 0;
    for (size_t d = 0; d < operand.extents().size(); ++d) {
      if (operand.extents()[d] == 0) return 0;
      last += (operand.extents()[d] - 1) * operand.strides()[d];
    }
    return static_cast<size_t>(last + 1) * lath_dtype_size(operand.dtype());
  }

  size_t bytes_;
  Guarded guarded_;
};

// ---- what a call is lent ---------------------------------------------------------------------------------------------

struct DeviceOptions {
  int route = -1;    // forced where it is possible
  bool blas = true;  // lend a handle
  lath_association association = LATH_AUTO;
  Layout output;                      // of y and dx
  Layout contiguous;                  // of p, dv, du and the bias gradients: no gap
  size_t workspace_misalignment = 0;  // bytes
};

class Lent {
 public:
  explicit Lent(const DeviceOptions &options) {
    cuda_ = {};
#if !defined(LATH_TEST_NO_BLAS)
    if (options.blas) {
      EXPECT_EQ(cublasCreate(&handle_), CUBLAS_STATUS_SUCCESS);
      cuda_.blas = handle_;
    }
#endif
    lath_cuda_force_route(options.route);
  }
  ~Lent() {
    lath_cuda_force_route(-1);
#if !defined(LATH_TEST_NO_BLAS)
    if (handle_ != nullptr) cublasDestroy(handle_);
#endif
  }
  Lent(const Lent &) = delete;
  Lent &operator=(const Lent &) = delete;

  lath_cuda *get() { return &cuda_; }

 private:
  struct lath_cuda cuda_;
#if !defined(LATH_TEST_NO_BLAS)
  cublasHandle_t handle_ = nullptr;
#endif
};

// Calls entry(args, cuda) with a workspace of exactly the size that `query` answers.
template <typename Args, typename Query, typename Entry, typename Run>
void CallOnDevice(Args *args, const DeviceOptions &options, Lent *lent, Query query, Entry entry, Run *run) {
  run->workspace_intact = true;
  run->status = query(args, lent->get(), &args->workspace_bytes);
  if (run->status != LATH_OK) return;
  const Guarded workspace(args->workspace_bytes, options.workspace_misalignment);
  args->workspace = workspace.data();
  run->status = entry(args, lent->get());
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  run->workspace_intact = workspace.Intact();
}

// ---- low-rank linear
// ------------------------------------------------------------------------------------------------------------

// In 16-bit types only numbers from {-1, 0, 1}: the intermediate, which is rounded to that type, is then exact as well.
inline LowrankInputs ExactInputs(lath_dtype dtype, const LowrankShape &shape, bool with_inner_bias, bool with_bias,
                                 uint32_t seed, const LowrankInputs::Layouts &layouts = LowrankInputs::Layouts()) {
  LowrankInputs inputs(dtype, shape, with_inner_bias, with_bias, Numbers::kIntegers, seed, layouts);
  for (Operand *operand : {&inputs.x, &inputs.v, &inputs.u, &inputs.inner_bias, &inputs.bias, &inputs.dy}) {
    if (!Is16Bit(dtype)) break;
    Values values = operand->Read();
    for (double &value : values) value = std::fmod(value, 2.0);
    operand->Fill(values);
  }
  return inputs;
}

struct OperandsOnDevice {
  explicit OperandsOnDevice(const LowrankInputs &inputs)
      : x(inputs.x), v(inputs.v), u(inputs.u), inner_bias(inputs.inner_bias), bias(inputs.bias), dy(inputs.dy) {}

  lath_test::LowrankArgs Arguments(const LowrankInputs &inputs, const DeviceOptions &options) const {
    lath_test::LowrankArgs args = lath_test::Arguments(inputs);
    args.association = options.association;
    args.x = x.data();
    args.v = v.data();
    args.u = u.data();
    args.inner_bias = inputs.has_inner_bias ? inner_bias.data() : nullptr;
    args.bias = inputs.has_bias ? bias.data() : nullptr;
    return args;
  }

  OnDevice x, v, u, inner_bias, bias, dy;
};

// The kernel that the last forward or backward of this thread was planned for.
inline int &LastKernel() {
  static int kernel;
  return kernel;
}

inline void NoteKernel(const lath_test::LowrankArgs &args, Lent *lent, int backward) {
  lath_test::Plan plan = {};
  EXPECT_EQ(lath_cuda_lowrank_linear_plan(&args, lent->get(), backward, &plan), LATH_OK);
  LastKernel() = plan.kernel;
}

inline ForwardRun ForwardOnDevice(const LowrankInputs &inputs, const DeviceOptions &options, bool with_p = false) {
  const LowrankShape &shape = inputs.shape;
  ForwardRun run = {LATH_OK, true, Operand(inputs.dtype, shape.rows, shape.out, options.output),
                    Operand(inputs.dtype, shape.rows, shape.rank, options.contiguous)};
  const OperandsOnDevice operands(inputs);
  const OnDevice y(run.y), p(run.p);
  Lent lent(options);
  lath_test::LowrankArgs args = operands.Arguments(inputs, options);
  args.y = y.data();
  args.s_y = run.y.stride();
  args.p = with_p ? p.data() : nullptr;
  NoteKernel(args, &lent, 0);
  CallOnDevice(&args, options, &lent, lath_cuda_lowrank_linear_workspace, lath_cuda_lowrank_linear, &run);
  y.CopyTo(&run.y);
  p.CopyTo(&run.p);
  return run;
}

// `p` may be nullptr: recomputed.
inline BackwardRun BackwardOnDevice(const LowrankInputs &inputs, const DeviceOptions &options,
                                    unsigned gradients = lath_test::kAllGradients, const Operand *p = nullptr) {
  const LowrankShape &shape = inputs.shape;
  const lath_dtype dtype = inputs.dtype;
  BackwardRun run = {LATH_OK,
                     true,
                     Operand(dtype, shape.rows, shape.in, options.output),
                     Operand(dtype, shape.rank, shape.in, options.contiguous),
                     Operand(dtype, shape.out, shape.rank, options.contiguous),
                     Operand(dtype, 1, shape.rank, options.contiguous),
                     Operand(dtype, 1, shape.out, options.contiguous)};
  const OperandsOnDevice operands(inputs);
  const OnDevice dx(run.dx), dv(run.dv), du(run.du), d_inner_bias(run.d_inner_bias), d_bias(run.d_bias), saved(p ? *p : run.dx);
  Lent lent(options);
  lath_test::LowrankArgs args = operands.Arguments(inputs, options);
  args.dy = operands.dy.data();
  args.s_dy = inputs.dy.stride();
  args.p = p != nullptr ? saved.data() : nullptr;
  args.dx = gradients & lath_test::kDx ? dx.data() : nullptr;
  args.s_dx = run.dx.stride();
  args.dv = gradients & lath_test::kDv ? dv.data() : nullptr;
  args.du = gradients & lath_test::kDu ? du.data() : nullptr;
  args.d_inner_bias = gradients & lath_test::kDInnerBias ? d_inner_bias.data() : nullptr;
  args.d_bias = gradients & lath_test::kDBias ? d_bias.data() : nullptr;
  NoteKernel(args, &lent, 1);
  CallOnDevice(&args, options, &lent, lath_cuda_lowrank_linear_backward_workspace, lath_cuda_lowrank_linear_backward, &run);
  dx.CopyTo(&run.dx);
  dv.CopyTo(&run.dv);
  du.CopyTo(&run.du);
  d_inner_bias.CopyTo(&run.d_inner_bias);
  d_bias.CopyTo(&run.d_bias);
  return run;
}

inline std::string Describe(const LowrankInputs &inputs, const DeviceOptions &options) {
  return lath_test::Describe(inputs.dtype, inputs.shape) + " biases " + std::to_string(inputs.has_inner_bias) +
         std::to_string(inputs.has_bias) + " route " + std::to_string(options.route) + " kernel " +
         std::to_string(LastKernel()) + " blas " + std::to_string(options.blas) + " association " +
         std::to_string(options.association);
}

// y is exact, and p where it was asked for; a merged plan leaves p alone.
inline testing::AssertionResult ExactForward(const LowrankInputs &inputs, const DeviceOptions &options, bool with_p = false) {
  const ForwardRun run = ForwardOnDevice(inputs, options, with_p);
  const LowrankOracle oracle = OracleOf(inputs);
  testing::AssertionResult result = Completed(run);
  if (result) result = lath_test::Exactly(run.y, oracle.Y());
  const bool has_p = with_p && LastKernel() != LATH_LOWRANK_MERGED;
  if (result && has_p) result = lath_test::Exactly(run.p, oracle.P());
  if (result && !has_p && !run.p.Untouched()) result = testing::AssertionFailure() << "p was written and not asked for";
  return result ? result : testing::AssertionFailure() << Describe(inputs, options) << ": " << result.message();
}

inline testing::AssertionResult ExactBackward(const LowrankInputs &inputs, const DeviceOptions &options, unsigned gradients,
                                              const Operand *p = nullptr) {
  const BackwardRun run = BackwardOnDevice(inputs, options, gradients, p);
  const testing::AssertionResult result = lath_test::ExactGradients(run, OracleOf(inputs), gradients);
  if (result) return result;
  return testing::AssertionFailure() << Describe(inputs, options) << " gradients " << gradients << ": " << result.message();
}

// How far a result may be off, as a share of the same formula on absolute values. Intermediates (p, dp, u v, dw ...) of 16-bit
// types are rounded to that type: half a unit in the last place each, for at most four in a row.
inline double DeviceErrorFactor(const LowrankOracle &oracle, lath_dtype dtype) {
  const double intermediate = dtype == LATH_BF16 ? std::ldexp(1.0, -7) : dtype == LATH_F16 ? std::ldexp(1.0, -10) : 0.0;
  return oracle.ErrorFactor(dtype) + intermediate;
}

}  // namespace cuda_test

#endif  // LATH_TESTS_CUDA_ON_CPU_LOWRANK_CASES_H_
