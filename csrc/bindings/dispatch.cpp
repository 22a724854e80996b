#include "dispatch.h"

#include <torch/csrc/utils/pybind.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <shared_mutex>
#include <unordered_map>

#include "cpu/table.h"
#include "cuda/table.h"
#include "gpu_run.h"
#include "memory.h"
#include "parallel.h"

namespace fastconv {

namespace {

// Bounds the memory of a process that sees ever new shapes; a full cache starts again.
constexpr size_t max_plans = 8192;

// A problem that one thread finishes in the few microseconds in which a second one wakes up runs on one (Zen 4, 2
// threads, 2026-11-22: 3.7 against 4.4 us for 1x1 32->32@8, equal at 64->64@7).
constexpr double serial_flops = 1 << 18, serial_bytes = 1 << 16;

struct Key {
  Problem problem;
  c10::DeviceType device;
  int threads;  // estimates depend on it
  bool operator==(const Key&) const = default;
};
struct KeyHash {
  size_t operator()(const Key& key) const {
    return hash_value(key.problem) ^ static_cast<size_t>(key.device) ^ static_cast<size_t>(key.threads) << 8;
  }
};

using Plans = std::unordered_map<Key, std::shared_ptr<const Plan>, KeyHash>;

struct Cache {
  std::shared_mutex mutex;
  Plans plans;
  py::object planner;
  py::object trace;
};

Cache& cache() {
  static Cache* const instance = new Cache;  // outlives the interpreter: Python objects must not die after it
  return *instance;
}

// A plan may hold the last reference to a Python object: it dies under the interpreter's lock.
std::shared_ptr<const Plan> make_plan(const Problem& problem, c10::DeviceType device) {
  py::gil_scoped_acquire gil;
  py::object kernel = cache().planner(py::cast(problem), c10::DeviceTypeName(device, /*lower_case=*/true));
  auto* plan = new Plan;
  const py::object native = kernel.attr("native"), gpu = kernel.attr("gpu");
  if (!native.is_none())
    plan->native = &cpu_kernels().at(native.cast<size_t>());
  else if (!gpu.is_none())
    plan->gpu = &device::gpu_kernels().at(gpu.cast<size_t>());
  else
    plan->kernel = std::move(kernel);
  plan->serial = is_serial(problem);
  return {plan, [](const Plan* p) {
            if (p->kernel) {
              py::gil_scoped_acquire lock;
              delete p;
            } else {
              delete p;
            }
          }};
}

std::atomic<bool> tracing{false};

// Hands one finished call to the sink set by set_trace(). What the sink raises is raised by the call.
void report(const Plan& plan, const Problem& problem, double seconds) {
  py::gil_scoped_acquire gil;
  const py::object sink = cache().trace;
  if (!sink || sink.is_none()) return;
  const py::object name = plan.native ? py::str(plan.native->name)
                          : plan.gpu  ? py::str(plan.gpu->name)
                                      : plan.kernel.attr("name");
  sink(py::cast(problem), name, seconds);
}

// A call's workspace. Fresh pages cost as much as the kernel of a small map, so each thread keeps its last workspace
// unless it is large.
class Workspace {
 public:
  explicit Workspace(size_t bytes) {
    if (bytes == 0) return;
    if (bytes > most_kept) {
      own_ = memory().allocate(bytes);
      data_ = own_.get();
      return;
    }
    thread_local at::DataPtr kept;
    thread_local size_t kept_bytes = 0;
    if (kept_bytes < bytes) {
      kept_bytes = 0;
      kept.clear();
      kept = memory().allocate(bytes);
      kept_bytes = bytes;
    }
    data_ = kept.get();
  }
  void* get() const { return data_; }

 private:
  static constexpr size_t most_kept = size_t{64} << 20;
  at::DataPtr own_;
  void* data_ = nullptr;
};

const void* data_of(const at::Tensor& tensor) { return tensor.defined() ? tensor.const_data_ptr() : nullptr; }

at::Tensor run_python(const Plan& plan, const Problem& problem, const Operands& o) {
  py::gil_scoped_acquire gil;
  py::dict tensors;
  auto put = [&](const char* name, const at::Tensor& tensor) {
    if (tensor.defined()) tensors[name] = py::cast(tensor);
  };
  put("x", o.x), put("w", o.w), put("y", o.y), put("bias", o.bias), put("residual", o.residual), put("index", o.index);
  put("mean", o.mean), put("variance", o.variance), put("stats", o.stats);
  if (problem.is_lrn())
    tensors["response"] = py::make_tuple(o.response.alpha, o.response.beta, o.response.k);
  else if (problem.is_norm())
    tensors["eps"] = o.eps;
  return plan.kernel.attr("run")(py::cast(problem), **tensors).cast<at::Tensor>();
}

// PyTorch's operators choose the strides of their results themselves; ours were promised beforehand.
at::Tensor with_promised_strides(at::Tensor result, const Problem& p, const Operands& o) {
  if (p.pass == Pass::wgrad && p.is_norm()) return result;
  std::vector<int64_t> strides = c10::get_channels_last_strides_2d(result.sizes());
  if (p.pass == Pass::wgrad && p.is_conv())
    strides = o.w_strides.vec();
  else if (p.layout == Layout::nchw)
    strides.assign(
        {result.size(1) * result.size(2) * result.size(3), result.size(2) * result.size(3), result.size(3), 1});
  if (result.strides() == at::IntArrayRef(strides)) return result;
  return at::empty_strided(result.sizes(), strides, result.options()).copy_(result);
}

at::Tensor run(const Plan& plan, const Problem& problem, Operands operands) {
  if (plan.kernel) return with_promised_strides(run_python(plan, problem, operands), problem, operands);
  if (!operands.out.defined()) operands.out = allocate(problem, operands);
  if (operands.out.numel() == 0) return std::move(operands.out);
  if (plan.gpu)
    run_gpu(*plan.gpu, problem, operands);
  else if (plan.serial)
    run_native(*plan.native, problem, operands, Serial());
  else
    run_native(*plan.native, problem, operands, TorchParallel());
  return std::move(operands.out);
}

}  // namespace

bool is_serial(const Problem& problem) { return problem.flops() < serial_flops && problem.bytes() < serial_bytes; }

std::shared_ptr<const Plan> plan_for(const Problem& problem, c10::DeviceType device) {
  Cache& c = cache();
  const Key key{problem, device, at::get_num_threads()};
  {
    std::shared_lock lock(c.mutex);
    if (auto found = c.plans.find(key); found != c.plans.end()) return found->second;
  }
  auto plan = make_plan(problem, device);
  Plans dropped;  // outlives the lock: a plan's end may wait for the interpreter, whose holder may wait for the lock
  std::unique_lock lock(c.mutex);
  if (c.plans.size() >= max_plans) dropped.swap(c.plans);
  return c.plans.try_emplace(key, std::move(plan)).first->second;
}

void set_planner(py::object planner) { cache().planner = std::move(planner); }

void clear_plans() {
  Plans dropped;
  {
    std::unique_lock lock(cache().mutex);
    dropped.swap(cache().plans);
  }
}

void set_trace(py::object sink) {
  tracing = !sink.is_none();
  cache().trace = std::move(sink);
}

size_t plan_count() {
  std::shared_lock lock(cache().mutex);
  return cache().plans.size();
}

static void strides_of(const at::Tensor& tensor, int64_t (&strides)[4]) {
  for (int i = 0; tensor.defined() && i < 4; ++i) strides[i] = tensor.stride(i);
}

Args args_of(const Problem& problem, const Operands& o) {
  Args args;
  args.x = data_of(o.x), args.w = data_of(o.w), args.y = data_of(o.y);
  args.bias = data_of(o.bias), args.residual = data_of(o.residual);
  args.mean = data_of(o.mean), args.variance = data_of(o.variance), args.eps = o.eps, args.response = o.response;
  args.stats = o.stats.defined() ? o.stats.mutable_data_ptr() : nullptr;
  args.scale = data_of(o.scale), args.packed = data_of(o.packed);
  args.keys = data_of(o.keys), args.values = data_of(o.values), args.mask = data_of(o.mask), args.factor = o.factor;
  if (problem.op == Op::copy2d || problem.is_attention()) {
    strides_of(o.x, args.x_stride), strides_of(o.keys, args.keys_stride);
    strides_of(o.values, args.values_stride), strides_of(o.mask, args.mask_stride);
  }
  args.out = o.out.mutable_data_ptr();
  args.index = o.index.defined() ? o.index.mutable_data_ptr() : nullptr;
  const at::Tensor& filter = problem.pass == Pass::wgrad ? o.out : o.w;
  if (problem.is_conv() && filter.defined())
    for (int i = 0; i < 4; ++i) args.w_stride[i] = filter.stride(i);
  return args;
}

at::Tensor allocate(const Problem& p, const Operands& o) {
  const at::Tensor& like = o.x.defined() ? o.x : o.y;
  if (p.pass == Pass::wgrad && p.is_conv()) return empty_result(o.w_sizes, o.w_strides, like.options());
  if (p.pass == Pass::wgrad && p.is_norm()) return at::empty({2, p.c}, o.mean.options());
  const bool dgrad = p.pass == Pass::dgrad;
  const Layout turned = p.layout == Layout::nhwc ? Layout::nchw : Layout::nhwc;
  return empty_result({p.n, p.written_channels(), dgrad ? p.h.in : p.h.out, dgrad ? p.w.in : p.w.out},
                      format_of(p.op == Op::reorder2d ? turned : p.layout), like.options());
}

void run_native(const Kernel& kernel, const Problem& problem, const Operands& o, const Parallel& parallel) {
  Args args = args_of(problem, o);
  Workspace workspace(static_cast<size_t>(kernel.body.workspace(problem, parallel.threads())));
  args.workspace = workspace.get();
  kernel.body.run(problem, args, parallel);
}

at::Tensor execute(const Problem& problem, Operands operands) {
  const at::Tensor& like = operands.x.defined() ? operands.x : operands.y;
  const auto plan = plan_for(problem, like.device().type());
  if (!tracing) return run(*plan, problem, std::move(operands));
  const auto start = std::chrono::steady_clock::now();
  at::Tensor out = run(*plan, problem, std::move(operands));
  report(*plan, problem, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  return out;
}

Dtype dtype_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kDouble:
      return Dtype::f64;
    case at::kFloat:
      return Dtype::f32;
    case at::kHalf:
      return Dtype::f16;
    case at::kBFloat16:
      return Dtype::bf16;
    default:
      return Dtype::other;
  }
}

at::MemoryFormat format_of(Layout layout) {
  return layout == Layout::nhwc ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}

Layout layout_of(const at::Tensor& tensor) {
  return tensor.suggest_memory_format() == at::MemoryFormat::ChannelsLast ? Layout::nhwc : Layout::nchw;
}

}  // namespace fastconv
