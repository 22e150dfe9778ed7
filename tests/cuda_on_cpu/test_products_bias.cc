// SPDX-License-Identifier: Apache-2.0
//
// test_products_bias.cc - products whose bias cuBLASLt adds: every type, odd sizes, strides and alignments; what is passed on
// to it, and the way without it when it cannot. The tests of products and of low-rank layers run where there is no cuBLASLt.

#include <algorithm>
#include <memory>
#include <thread>

#include "gemm/lt.h"
#include "lowrank_cases.h"
#include "oialr_on_device.h"

#if !defined(LATH_TESTS_ON_GPU)
#include "cublas/cublaslt.h"
#endif

namespace cuda_test {
namespace {

constexpr lath_dtype kLtDtypes[] = {LATH_F32, LATH_F16, LATH_BF16};

#if defined(LATH_TESTS_ON_GPU)
int Products() { return 0; }
long Launches() { return 0; }
bool Added(int, int) { return true; }
bool HadRoom() { return true; }
#else
int Products() { return fake_lt_record()->products; }
long Launches() { return emulator_launches(); }
bool Added(int before, int expected) { return Products() == before + expected; }
bool HadRoom() { return fake_lt_record()->workspace_bytes >= LATH_LT_WORKSPACE_HOPPER; }
#endif

struct Shape {
  int64_t m, n, k;
};

Operand Filled(lath_dtype dtype, int64_t rows, int64_t cols, Layout layout, uint32_t seed) {
  Operand operand(dtype, rows, cols, layout);
  FillWith(&operand, Numbers::kIntegers, seed);
  return operand;
}

Layout Gap(int64_t gap, int64_t misalignment) {
  Layout layout;
  layout.gap = gap, layout.misalignment = misalignment;
  return layout;
}

// One product with its operands, on the host and on the device.
struct Case {
  Case(lath_dtype type, Shape extents, bool transposed_a, bool transposed_b, uint32_t seed, Layout of_a = {}, Layout of_b = {},
       Layout of_c = {}, Layout of_bias = {})
      : shape(extents),
        a(Filled(type, transposed_a ? shape.k : shape.m, transposed_a ? shape.m : shape.k, of_a, seed)),
        b(Filled(type, transposed_b ? shape.n : shape.k, transposed_b ? shape.k : shape.n, of_b, seed + 1)),
        bias(Filled(type, 1, shape.n, of_bias, seed + 2)),
        c(type, shape.m, shape.n, of_c),
        a_device(a),
        b_device(b),
        bias_device(bias),
        c_device(c),
        product{type,
                type,
                type,
                shape.m,
                shape.n,
                shape.k,
                a_device.data(),
                a.stride(),
                transposed_a,
                b_device.data(),
                b.stride(),
                transposed_b,
                bias_device.data(),
                c_device.data(),
                c.stride(),
                0,
                nullptr,
                0} {}

  Values Want() const {
    const Values first = product.a_transposed ? Transpose(a.Read(), shape.k, shape.m) : a.Read();
    const Values second = product.b_transposed ? Transpose(b.Read(), shape.n, shape.k) : b.Read();
    Values want = Multiply(first, second, shape.m, shape.k, shape.n);
    const Values row = bias.Read();
    for (size_t i = 0; i < want.size(); ++i) want[i] += row[i % row.size()];
    return want;
  }

  testing::AssertionResult Exact(Lent *lent) {
    const lath_status status = lath_cuda_product(&product, lent->get());
    if (status != LATH_OK) return testing::AssertionFailure() << lath_cuda_error_text(lent->get()->error);
    c_device.CopyTo(&c);
    return lath_test::Exactly(c, Want());
  }

  Shape shape;
  Operand a, b, bias, c;
  OnDevice a_device, b_device, bias_device, c_device;
  lath_cuda_gemm product;
};

DeviceOptions NoOptions() { return {}; }

#if !defined(LATH_TESTS_ON_GPU)
// The first test: the libraries are looked up by whichever thread comes first. Each has a handle of its own, as in PyTorch.
TEST(BiasProduct, OnSeveralThreads) {
  constexpr int kThreads = 8, kCalls = 50;
  std::vector<std::unique_ptr<Case>> cases;
  std::vector<std::unique_ptr<Lent>> lent;
  for (int i = 0; i < kThreads; ++i) {
    cases.push_back(std::make_unique<Case>(kLtDtypes[i % 3], Shape{9 + i, 10, 11}, false, true, static_cast<uint32_t>(i)));
    lent.push_back(std::make_unique<Lent>(NoOptions()));
  }
  std::vector<int> products(kThreads), statuses(kThreads);
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      const size_t at = static_cast<size_t>(i);
      for (int call = 0; call < kCalls; ++call) statuses[at] |= lath_cuda_product(&cases[at]->product, lent[at]->get());
      products[at] = fake_lt_record()->products;
    });
  }
  for (std::thread &thread : threads) thread.join();
  for (size_t i = 0; i < kThreads; ++i) {
    EXPECT_EQ(statuses[i], LATH_OK);
    EXPECT_EQ(products[i], kCalls);
    cases[i]->c_device.CopyTo(&cases[i]->c);
    EXPECT_TRUE(lath_test::Exactly(cases[i]->c, cases[i]->Want()));
  }
}
#endif

TEST(BiasProduct, IsExactInEveryFormAndLaunchesNothingElse) {
  Choices choices(1);
  const std::vector<int64_t> edges = {2, 3, 15, 16, 17, 33, 64, 65, 100};
  for (const lath_dtype dtype : kLtDtypes) {
    for (unsigned form = 0; form < 32; ++form) {
      const Shape shape = {form % 8 == 7 ? 1 : choices.From(edges), choices.From(edges),
                           form % 8 == 6 ? 1 : choices.From(edges)};
      const bool gaps = form & 4;
      const auto layout = [&] { return gaps ? Gap(choices.Below(20), choices.Below(3)) : Layout(); };
      const Layout of_a = layout(), of_b = layout(), of_c = layout(), of_bias = layout();
      Case c(dtype, shape, form & 1, form & 2, choices.Next(), of_a, of_b, of_c, of_bias);
      Lent lent(NoOptions());
      const int before = Products();
      const long launches = Launches();
      EXPECT_TRUE(c.Exact(&lent)) << "type " << dtype << " m " << shape.m << " n " << shape.n << " k " << shape.k << " form "
                                  << form;
      EXPECT_TRUE(Added(before, 1));
      EXPECT_EQ(Launches(), launches);
    }
  }
}

// What cuBLASLt is not asked for, and the result all the same.
TEST(BiasProduct, GoesTheOtherWayWhereItDoesNotSuit) {
  Layout repeated;
  repeated.repeat_row = true;
  Case cases[] = {
      {LATH_F64, {5, 6, 7}, false, true, 1},
      {LATH_F32, {5, 1, 7}, false, true, 2},  // one column: kernels that forget the bias
      {LATH_F32, {5, 6, 0}, false, true, 3},
      {LATH_F32, {5, 6, 7}, false, true, 4, repeated},
      {LATH_F32, {5, 6, 7}, false, true, 5, {}, repeated},
  };
  for (Case &c : cases) {
    Lent lent(NoOptions());
    const int before = Products();
    EXPECT_TRUE(c.Exact(&lent));
    EXPECT_TRUE(Added(before, 0));
  }
  Case c(LATH_F32, {5, 6, 7}, false, true, 6);
  DeviceOptions without;
  without.blas = false;
  Lent lent(without);
  const int before = Products();
  EXPECT_TRUE(c.Exact(&lent));
  EXPECT_TRUE(Added(before, 0));
}

// 257 is no number of BF16: rounded to 256 before the bias of -1 it would end at 255.
TEST(BiasProduct, IsRoundedOnceAndAfterTheBias) {
  for (const bool blas : {true, false}) {
    Case c(LATH_BF16, {3, 4, 2}, false, true, 1);
    c.a.Fill({256, 1, 256, 1, 256, 1});
    c.b.Fill(Values(8, 1.0));
    c.bias.Fill(Values(4, -1.0));
    const OnDevice a(c.a), b(c.b), bias(c.bias);
    c.product.a = a.data(), c.product.b = b.data(), c.product.bias = bias.data();
    DeviceOptions options;
    options.blas = blas;
    Lent lent(options);
    EXPECT_TRUE(c.Exact(&lent));
    EXPECT_EQ(c.c.Read(), Values(12, 256.0));
  }
}

TEST(BiasProduct, WorkspaceIsAskedForWhereItIsUsed) {
  Lent lent(NoOptions());
  const struct lath_device hopper = {132, 227 << 10, 90}, ampere = {108, 163 << 10, 80};
  EXPECT_EQ(lath_lt_workspace(LATH_F32, lent.get(), &hopper), LATH_LT_WORKSPACE_HOPPER + LATH_LT_ALIGNMENT);
  EXPECT_EQ(lath_lt_workspace(LATH_BF16, lent.get(), &ampere), LATH_LT_WORKSPACE + LATH_LT_ALIGNMENT);
  EXPECT_EQ(lath_lt_workspace(LATH_F64, lent.get(), &hopper), 0u);
  DeviceOptions without;
  without.blas = false;
  Lent nothing(without);
  EXPECT_EQ(lath_lt_workspace(LATH_F32, nothing.get(), &hopper), 0u);
}

// ---- the operators that make such products ----------------------------------------------------------------------------------

TEST(BiasProduct, OfALinearLayer) {
  Choices choices(2);
  for (const lath_dtype dtype : kDtypes) {
    for (const bool with_bias : {true, false}) {
      const lath_test::LinearInputs inputs(dtype, 17, 33, 20, with_bias, Numbers::kIntegers, choices.Next());
      lath_test::LinearRun run = {LATH_OK, true, Operand(dtype, 17, 20)};
      const OnDevice x(inputs.x), w(inputs.w), bias(inputs.bias), y(run.y);
      DeviceOptions options;
      options.workspace_misalignment = 4;
      Lent lent(options);
      lath_test::LinearArgs args = Arguments(inputs);
      args.x = x.data(), args.w = w.data(), args.y = y.data(), args.s_y = run.y.stride();
      args.bias = with_bias ? bias.data() : nullptr;
      const int before = Products();
      CallOnDevice(&args, options, &lent, lath_cuda_linear_workspace, lath_cuda_linear, &run);
      ASSERT_TRUE(Completed(run));
      y.CopyTo(&run.y);
      EXPECT_TRUE(lath_test::Exactly(run.y, OracleOf(inputs).P())) << lath_test::Describe(dtype, OracleOf(inputs).shape);
      const bool lt = with_bias && dtype != LATH_F64;
      EXPECT_TRUE(Added(before, lt));
      EXPECT_EQ(args.workspace_bytes > 0, lt);
      if (!lt) continue;
      args.workspace_bytes--;
      EXPECT_EQ(lath_cuda_linear(&args, lent.get()), LATH_SMALL_WORKSPACE);
    }
  }
}

TEST(BiasProduct, OfALowrankLayer) {
  Choices choices(3);
  for (const lath_dtype dtype : kLtDtypes) {
    for (const int route : {LATH_LOWRANK_PRODUCTS, LATH_LOWRANK_MERGED}) {
      for (unsigned biases = 0; biases < 4; ++biases) {
        const bool inner = biases & 1, outer = biases & 2;
        const LowrankInputs inputs = ExactInputs(dtype, {18, 21, 5, 19}, inner, outer, choices.Next());
        DeviceOptions options;
        options.route = route;
        options.workspace_misalignment = 8;
        int before = Products();
        EXPECT_TRUE(ExactForward(inputs, options, biases == 3));
        // Merged: u inner_bias + bias is a product with a bias too, where both are there.
        EXPECT_TRUE(Added(before, inner + outer)) << Describe(inputs, options);
        if (biases) {
          EXPECT_TRUE(HadRoom()) << Describe(inputs, options);
        }
        before = Products();
        EXPECT_TRUE(ExactBackward(inputs, options, lath_test::kAllGradients));
        const bool again = inner && route == LATH_LOWRANK_PRODUCTS;  // p
        EXPECT_TRUE(Added(before, again)) << Describe(inputs, options);
        if (again) {
          EXPECT_TRUE(HadRoom()) << Describe(inputs, options);
        }
      }
    }
  }
}

TEST(BiasProduct, OfAnOialrLayer) {
  Choices choices(4);
  for (const lath_dtype dtype : kLtDtypes) {
    for (const lath_oialr_route route : {LATH_OIALR_CHAINED, LATH_OIALR_FOLDED, LATH_OIALR_MERGED}) {
      for (const bool bias : {false, true}) {
        const OialrInputs inputs = ExactOialrInputs(dtype, {18, 21, 5, 19}, bias, choices.Next());
        OialrDeviceOptions options;
        options.association = route;
        options.route = LATH_LOWRANK_PRODUCTS;
        options.workspace_misalignment = 8;
        const int before = Products();
        EXPECT_TRUE(Exact(OialrForwardOnDevice(inputs, options, false), inputs.Want(), false)) << Describe(inputs, options);
        EXPECT_TRUE(Added(before, bias)) << Describe(inputs, options);
        if (bias) {
          EXPECT_TRUE(HadRoom()) << Describe(inputs, options);
        }
      }
    }
  }
}

// A bias that costs nothing does not change the route.
TEST(BiasProduct, IsFreeToThePlanner) {
  Lent lent(NoOptions());
  const Guarded somewhere(16);
  for (const int64_t rows : {17, 64, 256, 1024, 4096, 16384}) {
    for (const int64_t width : {64, 256, 768, 1024, 3072, 4096}) {
      for (int64_t rank = 8; rank <= width; rank += rank < 64 ? 8 : 40) {
        lath_test::LowrankArgs args = {};
        lath_test::Plan without = {}, with = {};
        args.dtype = LATH_F32;
        args.rows = rows, args.in = width, args.rank = rank, args.out = width;
        args.s_x = args.s_v = args.s_y = width, args.s_u = rank;
        ASSERT_EQ(lath_cuda_lowrank_linear_plan(&args, lent.get(), 0, &without), LATH_OK);
        args.bias = somewhere.data(), args.inner_bias = somewhere.data();
        ASSERT_EQ(lath_cuda_lowrank_linear_plan(&args, lent.get(), 0, &with), LATH_OK);
        EXPECT_EQ(with.kernel, without.kernel) << "rows " << rows << " width " << width << " rank " << rank;
      }
    }
  }
}

#if !defined(LATH_TESTS_ON_GPU)

// ---- what is passed on ------------------------------------------------------------------------------------------------------

TEST(BiasProduct, PassesTheAlignmentOfEachPointer) {
  for (int64_t shift = 0; shift < 5; ++shift) {
    Case c(LATH_F32, {9, 10, 11}, false, true, 1, Gap(0, shift), Gap(0, 2 * shift), Gap(0, 4));
    Lent lent(NoOptions());
    ASSERT_TRUE(c.Exact(&lent));
    const auto of = [](const void *data) {
      const uintptr_t address = reinterpret_cast<uintptr_t>(data);
      return static_cast<uint32_t>(std::min<uintptr_t>(address & (~address + 1), 256));
    };
    const FakeLtRecord &record = *fake_lt_record();
    EXPECT_EQ(record.alignment_a, of(c.b_device.data()));  // its first operand is our second
    EXPECT_EQ(record.alignment_b, of(c.a_device.data()));
    EXPECT_EQ(record.alignment_c, of(c.c_device.data()));
    EXPECT_EQ(record.alignment_d, record.alignment_c);
    EXPECT_EQ(record.reduction, uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
  }
}

// The stand-in refuses a kernel that was chosen for pointers on better alignment, or for another shape.
TEST(BiasProduct, ChoosesAgainForOtherPointersAndShapes) {
  Lent lent(NoOptions());
  for (const int64_t shift : {0, 1, 0, 3}) {
    for (const int64_t m : {9, 12}) {
      Case c(LATH_BF16, {m, 10, 11}, false, true, 1, Gap(0, shift), Gap(5, shift), Gap(0, shift), Gap(0, shift));
      EXPECT_TRUE(c.Exact(&lent)) << "shift " << shift << " m " << m;
    }
  }
}

TEST(BiasProduct, UsesTheMathThatTheHandleAllows) {
  const struct {
    cublasMath_t mode;
    lath_dtype dtype;
    int products;
    cublasComputeType_t compute;
  } cases[] = {
      {CUBLAS_DEFAULT_MATH, LATH_F32, 1, CUBLAS_COMPUTE_32F},
      {CUBLAS_TF32_TENSOR_OP_MATH, LATH_F32, 1, CUBLAS_COMPUTE_32F_FAST_TF32},
      {CUBLAS_TF32_TENSOR_OP_MATH, LATH_BF16, 1, CUBLAS_COMPUTE_32F},
      {CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION, LATH_F16, 1, CUBLAS_COMPUTE_32F},
      {CUBLAS_PEDANTIC_MATH, LATH_F32, 0, CUBLAS_COMPUTE_32F},
  };
  for (const auto &expected : cases) {
    Case c(expected.dtype, {9, 10, 11}, false, true, 1);
    Lent lent(NoOptions());
    ASSERT_EQ(cublasSetMathMode(static_cast<cublasHandle_t>(lent.get()->blas), expected.mode), CUBLAS_STATUS_SUCCESS);
    *fake_lt_record() = {};
    EXPECT_TRUE(c.Exact(&lent));
    EXPECT_EQ(fake_lt_record()->products, expected.products) << expected.mode;
    if (expected.products) {
      EXPECT_EQ(fake_lt_record()->compute, expected.compute) << expected.mode;
    }
  }
}

TEST(BiasProduct, PassesTheStreamAndAnAlignedPartOfTheWorkspace) {
  cudaStream_t stream;
  ASSERT_EQ(cudaStreamCreate(&stream), cudaSuccess);
  for (const size_t bytes : {size_t{0}, size_t{100}, size_t{256}, size_t{5000}}) {
    for (const size_t misalignment : {size_t{0}, size_t{1}, size_t{64}, size_t{255}}) {
      Case c(LATH_F16, {9, 10, 11}, false, true, 1);
      Lent lent(NoOptions());
      const Guarded workspace(bytes, misalignment);
      lent.get()->stream = stream;
      c.product.workspace = workspace.data(), c.product.workspace_bytes = bytes;
      EXPECT_TRUE(c.Exact(&lent));
      EXPECT_TRUE(workspace.Intact()) << bytes << " " << misalignment;
      const FakeLtRecord &record = *fake_lt_record();
      const uintptr_t begin = reinterpret_cast<uintptr_t>(workspace.data()),
                      used = reinterpret_cast<uintptr_t>(record.workspace);
      EXPECT_EQ(record.stream, stream);
      EXPECT_EQ(record.workspace_bytes, bytes > (256 - begin % 256) % 256 ? bytes - (256 - begin % 256) % 256 : 0);
      if (record.workspace_bytes) {
        EXPECT_EQ(used % 256, 0u);
        EXPECT_EQ(used + record.workspace_bytes, begin + bytes);
      }
    }
  }
  cudaStreamDestroy(stream);
}

// ---- when it cannot ---------------------------------------------------------------------------------------------------------

class NextChoice {
 public:
  explicit NextChoice(FakeLtChoice choice) { fake_lt_choose(choice); }
  ~NextChoice() { fake_lt_choose(kFakeLtFound); }
};

TEST(BiasProduct, StartsFromTheBiasWhereNoKernelIsFound) {
  for (const FakeLtChoice choice : {kFakeLtNone, kFakeLtUnsupported, kFakeLtBadState}) {
    for (const lath_dtype dtype : kLtDtypes) {
      const NextChoice next(choice);
      Case c(dtype, {9, 10, 11}, false, true, 1, {}, {}, Gap(3, 1));
      Lent lent(NoOptions());
      const int before = Products();
      const long launches = emulator_launches();
      EXPECT_TRUE(c.Exact(&lent)) << choice;
      EXPECT_TRUE(Added(before, 0));
      EXPECT_EQ(emulator_launches(), launches + 1) << choice;
    }
  }
}

TEST(BiasProduct, ReportsAKernelThatFails) {
  const NextChoice next(kFakeLtBadProduct);
  Case c(LATH_F32, {9, 10, 11}, false, true, 1);
  Lent lent(NoOptions());
  EXPECT_EQ(lath_cuda_product(&c.product, lent.get()), LATH_DEVICE_FAILED);
  EXPECT_EQ(lent.get()->error, LATH_CUDA_BLAS_ERROR + CUBLAS_STATUS_EXECUTION_FAILED);
}

#endif

}  // namespace
}  // namespace cuda_test
