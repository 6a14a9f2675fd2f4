// The custom op inside the real onnxruntime (its library is named by ASVP_ONNXRUNTIME): models with attributes and shapes of
// every kind are refused with the op's name, or give the bits of the C ABI.
#include <limits.h>
#include <math.h>
#include <stdint.h>

#include <string>
#include <vector>

#include "../tests/buffer.h"
#include "../tests/host.h"
#include "asvp.h"
#include "reader.h"

extern "C" OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base);

namespace {

constexpr char kOpType[] = "AdaptiveSingularValuePerturbation";
constexpr int64_t kMostElements = 4096;

const Runtime& runtime() {
  static const char* const path = getenv("ASVP_ONNXRUNTIME");
  if (!path) Runtime::fail("ASVP_ONNXRUNTIME has to name libonnxruntime.so");
  static const Runtime* const made = new Runtime(path);
  return *made;
}

struct Attributes {
  int64_t rank = 1, axis = 1;
  float gain = 1.1f, energy = 1;
  bool good = true;  // every one is of its type and in its range
  std::vector<Message> written;
};

std::string some_text(Reader& in) {
  std::string text(static_cast<size_t>(in.one_in(8) ? in.below(600) : in.below(12)), '\0');
  for (char& letter : text) letter = static_cast<char>(in.bits(1));
  return text;
}

// An attribute of a type that none of ours has. (Lists of texts and graphs look missing: onnxruntime has no question for them.)
Message other_attribute(Reader& in, const std::string& name) {
  const Message tensor = Message().number(1, 1).number(2, 1).fixed32(4, 2.0f);
  const int64_t kind = in.below(4), length = kind < 2 ? 0 : in.below(3);
  Message made = attribute(name, kind == 0 ? 3 : kind == 1 ? 4 : kind == 2 ? 6 : 7);
  if (kind == 0) made.text(4, some_text(in));
  if (kind == 1) made.message(5, tensor);
  for (int64_t i = 0; i < length; ++i) kind == 2 ? made.fixed32(7, 2.0f) : made.number(8, 2);
  return made;
}

void write_integer(Reader& in, const char* name, int64_t value, Attributes* to, int64_t* kept) {
  if (in.one_in(4)) return;  // left to its default
  const bool wrong = in.one_in(16);
  to->good = to->good && !wrong;
  if (wrong) {
    to->written.push_back(in.below(2) ? float_attribute(name, static_cast<float>(value)) : other_attribute(in, name));
  } else {
    to->written.push_back(int_attribute(name, value));
    *kept = value;
  }
}

void write_float(Reader& in, const char* name, float value, Attributes* to, float* kept) {
  if (in.one_in(4)) return;
  const bool wrong = in.one_in(16);
  to->good = to->good && !wrong;
  if (wrong) {
    to->written.push_back(in.below(2) ? int_attribute(name, 2) : other_attribute(in, name));
  } else {
    to->written.push_back(float_attribute(name, value));
    *kept = value;
  }
}

Attributes some_attributes(Reader& in) {
  Attributes made;
  write_integer(in, "rank", in.one_in(4) ? in.integer() : 1 + in.below(4), &made, &made.rank);
  write_float(in, "gain", in.one_in(4) ? static_cast<float>(in.real()) : in.pick({1.5f, 3.0f, 100.0f}), &made, &made.gain);
  write_float(in, "energy", in.one_in(4) ? static_cast<float>(in.real()) : in.pick({1.0f, 0.9f}), &made, &made.energy);
  write_integer(in, "axis", in.one_in(4) ? in.integer() : in.pick({1, 1, 2, 3, -1, -2}), &made, &made.axis);
  if (in.one_in(8)) made.written.push_back(other_attribute(in, "of_nobody"));
  made.good = made.good && made.rank >= 1 && made.gain > 0 && !isinf(made.gain) && made.energy > 0 && made.energy <= 1 &&
              made.axis != 0;
  return made;
}

// Sizes with at most kMostElements elements, unless they are wild.
std::vector<int64_t> some_dims(Reader& in, bool wild) {
  std::vector<int64_t> dims(static_cast<size_t>(in.one_in(8) ? in.below(40) : 2 + in.below(4)));
  int64_t elements = 1;
  for (int64_t& dim : dims) {
    dim = wild ? in.integer() & INT64_MAX : in.below(elements > kMostElements / 16 ? 2 : elements > 256 ? 4 : 12);
    if (!wild && !in.one_in(8) && dim == 0) dim = 1;
    elements = wild || dim == 0 ? elements : elements * dim;
  }
  return dims;
}

struct Split {
  int64_t n, before = 1, c, after = 1;
};

// Whether the axis is one of a map with these sizes, and how it divides it.
bool divide(const std::vector<int64_t>& dims, int64_t axis, Split* split) {
  const int64_t count = static_cast<int64_t>(dims.size());
  if (axis < -count || axis >= count) return false;
  axis += axis < 0 ? count : 0;
  if (count < 2 || count > 32 || axis < 1) return false;
  split->n = dims[0];
  split->c = dims[static_cast<size_t>(axis)];
  for (int64_t i = 1; i < axis; ++i) split->before *= dims[static_cast<size_t>(i)];
  for (int64_t i = axis + 1; i < count; ++i) split->after *= dims[static_cast<size_t>(i)];
  return true;
}

// What the C ABI makes of the map, its channels brought in front of its positions and back.
std::string by_the_abi(const Attributes& attributes, int dtype, const Split& split, const std::string& x) {
  const size_t width = static_cast<size_t>(element_bytes(dtype));
  const int64_t l = split.before * split.after;
  std::string packed(x), result(x);
  const auto turn = [&](const std::string& from, std::string* to, bool back) {
    for (int64_t s = 0; s < split.n; ++s)
      for (int64_t b = 0; b < split.before; ++b)
        for (int64_t i = 0; i < split.c; ++i)
          for (int64_t a = 0; a < split.after; ++a) {
            const int64_t mixed = ((s * split.before + b) * split.c + i) * split.after + a;
            const int64_t plain = (s * split.c + i) * l + b * split.after + a;
            to->replace(width * static_cast<size_t>(back ? mixed : plain), width, from,
                        width * static_cast<size_t>(back ? plain : mixed), width);
          }
  };
  turn(x, &packed, false);
  const asvp_problem problem = {split.n, split.c, l, split.c * l, l, 1, dtype, attributes.rank, attributes.gain,
                                attributes.energy};
  Buffer workspace(asvp_workspace_cpu(&problem), 0);
  REQUIRE(asvp_perturb_cpu(&problem, packed.data(), &packed[0], workspace.data, workspace.size, nullptr, nullptr) == ASVP_OK,
          "the C ABI refuses what the op takes");
  turn(packed, &result, true);
  return result;
}

std::string some_bytes(Reader& in, int dtype, size_t count) {
  uint64_t seed = in.bits(2);
  std::string bytes;
  for (size_t i = 0; i < count; ++i) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    // Float64 of order 1, whose leading bytes serve the other types, or any pattern at all.
    const double value = static_cast<double>(seed >> 11) * 0x1p-53 - 0.5;
    const float narrow = static_cast<float>(value);
    uint64_t bits = 0;
    const bool any = seed % 509 == 0;
    if (any) bits = in.bits(8);
    else if (dtype == ASVP_FLOAT64) memcpy(&bits, &value, 8);
    else memcpy(&bits, &narrow, 4);
    if (!any && dtype == ASVP_BFLOAT16) bits >>= 16;
    if (!any && dtype == ASVP_FLOAT16) bits = (seed >> 48 & 0x83ff) | 0x3000;
    bytes.append(reinterpret_cast<const char*>(&bits), static_cast<size_t>(element_bytes(dtype)));
  }
  return bytes;
}

void try_model(Reader& in) {
  constexpr OrtElementType elements[] = {ORT_FLOAT, ORT_FLOAT16, ORT_BFLOAT16, ORT_DOUBLE};
  const int dtype = static_cast<int>(in.below(4));
  const bool wild = in.one_in(8), declared = !in.one_in(4);
  const Attributes attributes = some_attributes(in);
  const std::vector<int64_t> dims = some_dims(in, wild);
  std::vector<int64_t> said = dims;
  if (!wild)
    for (int64_t& dim : said) dim = in.one_in(3) ? -1 : dim;
  Node node;
  node.attributes = attributes.written;
  if (in.one_in(4)) node.name = some_text(in);
  const std::string model = model_of({node}, elements[dtype], declared ? &said : nullptr);

  const Runtime& host = runtime();
  const auto options = host.options(1);
  host.must(RegisterCustomOps(options.get(), host.base));
  const auto [session, reason] = host.open(model, options);
  Split split = {};
  if (wild) {
    REQUIRE(session || !reason.empty(), "refused without a reason");
    REQUIRE(attributes.good || !session, "bad attributes are accepted");
    return;
  }
  const bool fits = divide(dims, attributes.axis, &split), told = declared && !dims.empty() && dims.size() <= 32;
  if (!attributes.good || (told && !fits)) {
    REQUIRE(!session, "bad attributes or an axis that is not there are accepted");
    REQUIRE(reason.find(kOpType) != std::string::npos, "refused without the op's name: %s", reason.c_str());
    return;
  }
  REQUIRE(session, "good attributes are refused: %s", reason.c_str());

  size_t count = 1;
  for (int64_t dim : dims) count *= static_cast<size_t>(dim);
  const std::string x = some_bytes(in, dtype, count);
  const size_t width = static_cast<size_t>(element_bytes(dtype));
  const auto [y, refused] = host.run(session, elements[dtype], width, dims, x.data());
  if (!fits) {
    REQUIRE(refused.find(kOpType) != std::string::npos, "the run does not name the op: '%s'", refused.c_str());
    return;
  }
  REQUIRE(refused.empty(), "a good model does not run: %s", refused.c_str());
  if (count) REQUIRE(y == by_the_abi(attributes, dtype, split, x), "other bits than the C ABI's");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Reader in(data, size);
  try_model(in);
  return 0;
}
