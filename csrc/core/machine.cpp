#include "machine.h"

#include <fstream>
#include <string>

namespace fastconv {

namespace {

constexpr int max_cache_levels = 8;  // entries the operating system lists for one core

std::string first_word(const std::string& path) {
  std::ifstream file(path);
  std::string word;
  file >> word;
  return word;
}

// "32K" or "1M" in bytes; 0 when it is neither.
int64_t bytes_of(const std::string& text) {
  int64_t value = 0;
  size_t i = 0;
  for (; i < text.size() && text[i] >= '0' && text[i] <= '9'; ++i) value = 10 * value + (text[i] - '0');
  if (i == text.size()) return value;
  return text[i] == 'K' ? value << 10 : text[i] == 'M' ? value << 20 : 0;
}

Machine read() {
  Machine found;
  for (int i = 0; i < max_cache_levels; ++i) {
    const std::string folder = "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(i) + "/";
    const std::string level = first_word(folder + "level");
    if (level.empty()) break;
    const int64_t bytes = bytes_of(first_word(folder + "size"));
    if (bytes <= 0 || first_word(folder + "type") == "Instruction") continue;
    (level == "1" ? found.l1 : level == "2" ? found.l2 : found.l3) = bytes;
  }
  return found;
}

}  // namespace

const Machine& machine() {
  static const Machine found = read();
  return found;
}

}  // namespace fastconv
