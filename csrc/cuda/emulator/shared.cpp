// Shared memory: who touched it, and copies by cp.async.
#include <cstring>

#include "machine.h"

namespace fastconv::emulated {

Cell* Cluster::cells(const void* at, int64_t bytes, const char* verb) {
  const auto place = static_cast<const char*>(at) - shared_.data(), offset = place - rank_of(at) * shared_pitch_;
  if (place < 0 || rank_of(at) >= blocks_ || offset + bytes > shared_bytes_)
    throw Failure(where() + " " + verb + " " + std::to_string(bytes) + " bytes at offset " + std::to_string(offset) +
                  " of " + std::to_string(shared_bytes_) + " bytes of shared memory.");
  return cells_.data() + place / cell_bytes;
}

void Cluster::check_alignment(const void* at, int64_t multiple, const char* what) {
  const auto offset = static_cast<const char*>(at) - shared_.data();
  if (offset % multiple)
    throw Failure(where() + " " + what + " at offset " + std::to_string(offset) +
                  " of shared memory, which is no multiple of " + std::to_string(multiple) + ".");
}

// --- what reads in its own time --------------------------------------------------------------------------------------
void Cluster::note_reading(int reader, const char* begin, const char* end, const char* what) {
  for (Reading& r : readings_)
    if (r.begin == begin && r.end == end && r.reader == reader) {
      ++r.pending;
      return;
    }
  readings_.push_back({begin, end, reader, {}, 1, what});
}

void Cluster::finish_reading(int reader, int lanes, const char* begin, const char* end) {
  for (Reading& r : readings_)
    if (r.begin == begin && r.end == end && r.reader == reader) {
      --r.pending;
      r.clocks.clear();
      for (int i = 0; i < lanes; ++i) r.clocks.push_back(threads_[static_cast<size_t>(reader + i)].clock);
    }
}

void Cluster::check_readings(const void* at, int64_t bytes, const char* verb) {
  const auto* first = static_cast<const char*>(at);
  std::erase_if(readings_, [&](const Reading& r) {
    if (first + bytes <= r.begin || r.end <= first) return false;
    if (r.pending)
      throw Failure(where() + " " + verb + " shared memory that " + r.what + " of thread " + name(r.reader) +
                    " still reads.");
    bool known = false;
    for (int i = 0; i < static_cast<int>(r.clocks.size()); ++i)
      known |= r.reader + i == current_ || ordered(r.reader + i, r.clocks[static_cast<size_t>(i)]);
    if (!known)
      throw Failure(where() + " " + verb + " shared memory that " + r.what + " of thread " + name(r.reader) +
                    " read, without a barrier between.");
    return true;
  });
}

// What a bulk store or a product reads must be there and visible to it.
void Cluster::check_async_read(const char* at, int64_t bytes, const char* what) {
  const Cell* cell = cells(at, bytes, what);
  for (int64_t i = 0; i < bytes / cell_bytes; ++i, ++cell) {
    if (cell->copier >= 0)
      throw Failure(where() + " " + what + " shared memory to which an asynchronous copy of thread " +
                    name(cell->copier) + " is on its way.");
    if (!cell->written) throw Failure(where() + " " + what + " shared memory that nobody has written.");
    const bool own = cell->writer == current_, earlier = cell->write_epoch != epoch();
    if (!own && !earlier && !ordered(cell->writer, cell->write_clock))
      throw Failure(where() + " " + what + " offset " + std::to_string((cell - cells_.data()) * cell_bytes) +
                    " of shared memory, whose writer it has not waited for.");
    if (cell->by_copy) continue;
    const Thread& writer = threads_[static_cast<size_t>(cell->writer)];
    const bool fenced = cell->write_epoch == writer.fenced_epoch ? cell->write_clock <= writer.fenced
                                                                 : cell->write_epoch < writer.fenced_epoch;
    if (!fenced)
      throw Failure(where() + " " + what + " shared memory that thread " + name(cell->writer) +
                    " wrote without a fence (fence.proxy.async) behind.");
  }
}

void Cluster::check_shared(const void* at, int bytes, bool write) {
  Cell* cell = cells(at, bytes, write ? "writes" : "reads");
  check_alignment(at, bytes, write ? "writes" : "reads");
  if (write && !readings_.empty()) check_readings(at, bytes, "writes");
  const auto self = static_cast<int16_t>(current_);
  for (int i = 0; i < (bytes + cell_bytes - 1) / cell_bytes; ++i, ++cell) {
    int other = -1;
    if (cell->copier >= 0)
      throw Failure(where() + (write ? " writes" : " reads") +
                    " shared memory to which an asynchronous copy of thread " + name(cell->copier) + " is on its way.");
    const bool read_now =
        cell->read_epoch == epoch() && cell->reader != self && !ordered(cell->reader, cell->read_clock);
    if (cell->write_epoch == epoch() && cell->writer != self && !ordered(cell->writer, cell->write_clock))
      other = cell->writer;
    if (write && read_now) other = cell->reader;
    if (other != -1)
      throw Failure(where() + (write ? " writes" : " reads") + " offset " +
                    std::to_string((cell - cells_.data()) * cell_bytes) + " of shared memory, which " +
                    (other == several                             ? "other threads have"
                     : other >= static_cast<int>(threads_.size()) ? "a bulk load has"
                                                                  : "thread " + name(other) + " has") +
                    " touched since the last barrier.");
    if (write) {
      cell->write_epoch = epoch(), cell->writer = self, cell->write_clock = me().clock;
      cell->written = true, cell->by_copy = false;
    } else {
      cell->reader = read_now ? several : self;
      cell->read_epoch = epoch(), cell->read_clock = me().clock;
    }
  }
}

void Cluster::copy_later(Copy copy) {
  check_shared(copy.to, copy.bytes, /*write=*/true);
  if (copy.from_bytes > 0) check_global(copy.from, copy.bytes, /*write=*/false);
  Cell* cell = cells(copy.to, copy.bytes, "copies");
  for (int i = 0; i < copy.bytes / cell_bytes; ++i) cell[i].copier = static_cast<int16_t>(current_);
  std::memset(copy.to, poison, static_cast<size_t>(copy.bytes));
  me().copies.push_back(copy);
  ++me().open;
}

void Cluster::commit() {
  Thread& t = me();
  t.groups.push_back(t.open);
  t.open = 0;
}

void Cluster::wait(int newest_left) {
  Thread& t = me();
  size_t done = 0;
  while (t.groups.size() > static_cast<size_t>(newest_left)) {
    done += t.groups.front();
    t.groups.erase(t.groups.begin());
  }
  for (size_t i = 0; i < done; ++i) {
    const Copy& c = t.copies[i];
    Cell* cell = cells(c.to, c.bytes, "copies");
    for (int k = 0; k < c.bytes / cell_bytes; ++k) cell[k].copier = -1;
    check_shared(c.to, c.bytes, /*write=*/true);
    std::memcpy(c.to, c.from, static_cast<size_t>(c.from_bytes));
    std::memset(c.to + c.from_bytes, 0, static_cast<size_t>(c.bytes - c.from_bytes));
  }
  t.copies.erase(t.copies.begin(), t.copies.begin() + static_cast<std::ptrdiff_t>(done));
}

}  // namespace fastconv::emulated
