#include "strips.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "core/integers.h"
#include "core/machine.h"

namespace fastconv {

namespace {

int64_t x_row_bytes(const Problem& p) { return p.source_channels() * p.w.in * dtype_bytes(p.dtype); }
int64_t out_row_bytes(const Problem& p) { return p.buffer_channels() * p.w.out * dtype_bytes(p.dtype); }

template <class Byte>
Byte* moved(Byte* base, int64_t bytes) {
  return base ? base + bytes : nullptr;
}

const void* moved(const void* base, int64_t bytes) { return moved(static_cast<const char*>(base), bytes); }

// The most rows that a strip of some rows reads of x.
int64_t most_source_rows(const Problem& p, int64_t rows) {
  return std::min(p.h.in, (rows - 1) * p.h.stride + p.h.reach());
}

// Whether a kernel runs some rows as it runs all, and how much memory that takes.
int64_t checked_workspace(const Step& link, const Problem& rows) {
  const KernelBody& body = link.kernel->body;
  std::string reason = invalid(rows);
  if (reason.empty()) reason = refusal(body, rows);
  if (reason.empty() && rows.packed && !(body.packed(rows) == body.packed(link.problem)))
    reason = "The filter of all rows is packed in another form.";
  if (!reason.empty()) throw std::invalid_argument(link.kernel->name + " does not run " + rows.text() + ": " + reason);
  return body.workspace(rows, 1);
}

// Over every number of rows, at the top, at the bottom, and where the map's ends are out of a window's reach.
int64_t most_workspace(const Step& link, int64_t height) {
  const Problem& p = link.problem;
  int64_t most = 0;
  for (int64_t count = 1; count <= height; ++count)
    for (int64_t begin = 0; begin <= p.h.out - count; ++begin) {
      most = std::max(most, checked_workspace(link, of_rows(p, {begin, begin + count})));
      const int64_t last = p.h.out - count - p.h.window;
      if (begin == p.h.window && last > begin) begin = last;  // those between are alike
    }
  return most;
}

// One thread's strips.
class Run {
 public:
  Run(const std::vector<Step>& links, const Memory& memory, char* scratch, const std::vector<int64_t>& buffers)
      : links_(links), want_(links.size()), have_(links.size()) {
    for (const Step& link : links) args_.push_back(memory.args_of(link));
    for (const int64_t at : buffers) buffers_.push_back(scratch + at);
  }

  void begin_image(int64_t image) {
    image_ = image;
    std::fill(have_.begin(), have_.end(), Rows{});
  }

  void strip(Rows rows) {
    want_.back() = rows;
    for (size_t i = links_.size() - 1; i-- > 0;) want_[i] = missing(i);
    for (size_t i = 0; i < links_.size(); ++i)
      if (want_[i].count() > 0) compute(i);
  }

 private:
  // Makes room for the rows that the next link reads, keeps those that are there, and returns the others.
  Rows missing(size_t i) {
    Rows &have = have_[i], need = have;
    if (want_[i + 1].count() > 0) need = source_rows(links_[i + 1].problem, want_[i + 1]);
    const int64_t kept = std::max<int64_t>(0, have.end - need.begin), row = out_row_bytes(links_[i].problem);
    if (kept && need.begin > have.begin)
      std::memmove(buffers_[i], buffers_[i] + (need.begin - have.begin) * row, static_cast<size_t>(kept * row));
    have = need;
    return {need.begin + kept, need.end};
  }

  void compute(size_t i) const {
    const Problem &all = links_[i].problem, some = of_rows(all, want_[i]);
    const int64_t element = dtype_bytes(all.dtype), first = image_ * all.h.out + want_[i].begin;
    Args args = args_[i];
    if (i == 0)
      args.x = moved(args.x, (image_ * all.h.in + source_rows(all, want_[i]).begin) * x_row_bytes(all));
    else
      args.x = buffers_[i - 1];
    if (i + 1 == links_.size())
      args.out = moved(static_cast<char*>(args.out), first * out_row_bytes(all));
    else
      args.out = buffers_[i] + (want_[i].begin - have_[i].begin) * out_row_bytes(all);
    args.residual = moved(args.residual, first * all.w.out * all.written_channels() * element);
    args.scale = moved(args.scale, image_ * all.c * element);
    args.workspace = buffers_.back();
    links_[i].kernel->body.run(some, args, Serial());
  }

  const std::vector<Step>& links_;
  std::vector<Args> args_;
  std::vector<char*> buffers_;
  std::vector<Rows> want_, have_;  // of each link's result: to compute now; in its buffer afterwards
  int64_t image_ = 0;
};

}  // namespace

Rows source_rows(const Problem& p, Rows rows) {
  const int64_t begin = rows.begin * p.h.stride - p.h.pad_lo, end = (rows.end - 1) * p.h.stride - p.h.pad_lo;
  return {std::max<int64_t>(0, begin), std::min(p.h.in, end + p.h.reach())};
}

Problem of_rows(const Problem& p, Rows rows) {
  const Rows source = source_rows(p, rows);
  Problem some = p;
  some.n = 1;
  some.h.in = source.count(), some.h.out = rows.count();
  some.h.pad_lo = std::max<int64_t>(0, p.h.pad_lo - rows.begin * p.h.stride);
  some.h.pad_hi = (rows.count() - 1) * p.h.stride + p.h.reach() - some.h.pad_lo - source.count();
  return some;
}

std::string refuses_rows(const Problem& p) {
  if (p.layout != Layout::nhwc) return "The layout is nchw: the rows of its channels lie apart.";
  if (p.pass != Pass::fprop || p.training) return "It is no forward pass of inference.";
  if (p.op != Op::conv2d && p.op != Op::maxpool2d && p.op != Op::map2d && p.op != Op::batchnorm2d)
    return "Rows of " + std::string(name_of(p.op)) + " are not computed apart.";
  if (p.index != Index::none) return "Its indices count from the start of the map.";
  if (source_rows(p, {0, 1}).count() < 1 || source_rows(p, {p.h.out - 1, p.h.out}).count() < 1)
    return "A window lies in the padding alone.";
  return {};
}

Strips::Strips(const std::vector<Step>& links, int64_t height) : height_(height) {
  int64_t at = 0, workspace = 0, rows = height;
  buffers_.resize(links.size());
  for (size_t i = links.size(); i-- > 0;) {
    const Problem& p = links[i].problem;
    const std::string reason = refuses_rows(p);
    if (!reason.empty()) throw std::invalid_argument(p.text() + ": " + reason);
    if (i + 1 < links.size()) {
      buffers_[i] = at;
      at += round_up(rows * out_row_bytes(p), cache_line);
    }
    workspace = std::max(workspace, most_workspace(links[i], rows));
    rows = most_source_rows(p, rows);
  }
  buffers_.back() = at;
  thread_bytes_ = round_up(at + workspace, cache_line);
}

void Strips::run(const std::vector<Step>& links, const Memory& memory, char* scratch, const Parallel& parallel) const {
  const Problem& last = links.back().problem;
  parallel(last.n * last.h.out, [&](int64_t begin, int64_t end, int thread) {
    Run run(links, memory, scratch + thread * thread_bytes_, buffers_);
    while (begin < end) {
      const int64_t image = begin / last.h.out, first = begin % last.h.out;
      const int64_t count = std::min(end - begin, last.h.out - first), strips = divide_up(count, height_);
      run.begin_image(image);
      for (int64_t i = 0; i < strips; ++i) run.strip({first + i * count / strips, first + (i + 1) * count / strips});
      begin += count;
    }
  });
}

}  // namespace fastconv
