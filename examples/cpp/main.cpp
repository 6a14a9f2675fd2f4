// restore MODEL.onnx IN.ppm OUT.ppm [libasvp.so]: a picture through a protected file, by the native kernel where it is given.
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iostream>
#include <vector>

int main(int argc, char** argv) try {
  std::ifstream in(argc > 3 ? argv[2] : "", std::ios::binary);
  std::string magic;
  int64_t width = 0, height = 0, white = 0;
  in >> magic >> width >> height >> white;
  if (!in || magic != "P6" || white != 255 || width < 1 || height < 1) {
    std::cerr << "usage: restore MODEL.onnx IN.ppm OUT.ppm [libasvp.so]; the picture has to be a binary PPM of 8 bits\n";
    return 2;
  }
  std::vector<unsigned char> bytes(3 * width * height);
  in.ignore(1).read(reinterpret_cast<char*>(bytes.data()), bytes.size());
  std::vector<float> planes(bytes.size());  // N,C,H,W in 0..1
  for (int64_t i = 0; i < width * height; ++i)
    for (int64_t c = 0; c < 3; ++c) planes[c * width * height + i] = bytes[3 * i + c] / 255.0f;

  Ort::Env env;
  Ort::SessionOptions options;
  if (argc > 4) options.RegisterCustomOpsLibrary(argv[4]);  // without it the body in the file runs
  Ort::Session session(env, argv[1], options);
  Ort::AllocatorWithDefaultOptions allocator;
  auto input = session.GetInputNameAllocated(0, allocator), output = session.GetOutputNameAllocated(0, allocator);
  const char *from = input.get(), *to = output.get();
  const int64_t shape[] = {1, 3, height, width};
  auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  auto image = Ort::Value::CreateTensor<float>(memory, planes.data(), planes.size(), shape, 4);
  auto restored = session.Run(Ort::RunOptions{}, &from, &image, 1, &to, 1);

  const auto size = restored[0].GetTensorTypeAndShapeInfo().GetShape();
  const int64_t pixels = size[2] * size[3];
  const float* values = restored[0].GetTensorData<float>();
  bytes.resize(3 * pixels);
  for (int64_t i = 0; i < 3 * pixels; ++i)
    bytes[i] = std::lround(255 * std::clamp(values[i % 3 * pixels + i / 3], 0.0f, 1.0f));
  std::ofstream out(argv[3], std::ios::binary);
  out << "P6\n" << size[3] << " " << size[2] << "\n255\n";
  out.write(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  return out.flush() ? 0 : 1;
} catch (const Ort::Exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
