// Classify raw RGB pictures from several threads:
//
//     classify BUNDLE PICTURES WIDTH HEIGHT [--threads N] [--batch N] [--target NAME]
//
// PICTURES holds any number of pictures of HEIGHT rows of WIDTH pixels of 3 bytes, one behind the other. Prints a line
// a picture, in their order: its number, the index of the best class, the probability, the name.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iterator>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "iresnet_infer.hpp"

namespace {

struct Arguments {
    std::string bundle, pictures, target;
    int width = 0, height = 0, threads = 2, batch = 8;
};

struct Best {
    int32_t index = -1;
    float score = 0;
};

Arguments parse(int count, char **values)
{
    const char *usage = "usage: classify BUNDLE PICTURES WIDTH HEIGHT [--threads N] [--batch N] [--target NAME]";
    Arguments arguments;
    std::vector<std::string> plain;
    for (int i = 1; i < count; ++i) {
        const std::string word = values[i];
        if (word.rfind("--", 0) != 0) {
            plain.push_back(word);
            continue;
        }
        if (i + 1 == count)
            throw std::invalid_argument(usage);
        const std::string value = values[++i];
        if (word == "--threads")
            arguments.threads = std::stoi(value);
        else if (word == "--batch")
            arguments.batch = std::stoi(value);
        else if (word == "--target")
            arguments.target = value;
        else
            throw std::invalid_argument(usage);
    }
    if (plain.size() != 4)
        throw std::invalid_argument(usage);
    arguments.bundle = plain[0];
    arguments.pictures = plain[1];
    arguments.width = std::stoi(plain[2]);
    arguments.height = std::stoi(plain[3]);
    if (arguments.width < 1 || arguments.height < 1 || arguments.threads < 1 || arguments.batch < 1)
        throw std::invalid_argument(usage);
    return arguments;
}

std::vector<uint8_t> read(const std::string &path)
{
    std::ifstream file(path, std::ios::binary);
    if (!file)
        throw std::runtime_error("cannot read " + path);
    return {std::istreambuf_iterator<char>(file), {}};
}

// Every thread takes the next batch of pictures until there are none.
std::vector<Best> classify(const iresnet::Runner &runner, const std::vector<uint8_t> &pixels, const Arguments &arguments)
{
    const std::size_t picture = std::size_t{3} * arguments.width * arguments.height;
    const std::size_t total = pixels.size() / picture;
    std::vector<Best> results(total);
    std::atomic<std::size_t> next{0};
    std::exception_ptr failure;
    std::mutex mutex;

    auto work = [&] {
        try {
            std::vector<uint8_t> batch(arguments.batch * runner.image_bytes());
            for (std::size_t first; (first = next.fetch_add(arguments.batch)) < total;) {
                const int rows = static_cast<int>(std::min<std::size_t>(arguments.batch, total - first));
                for (int row = 0; row < rows; ++row)
                    runner.preprocess(pixels.data() + (first + row) * picture, arguments.width, arguments.height,
                                      std::size_t{3} * arguments.width, batch.data() + row * runner.image_bytes());
                const iresnet::Outputs outputs = runner.infer(batch.data(), rows);
                const std::size_t top_k = outputs.classes.size() / rows;
                for (int row = 0; row < rows; ++row) {
                    const std::size_t best = row * top_k;
                    results[first + row] = {outputs.classes[best], outputs.scores[best]};
                }
            }
        } catch (...) {
            const std::lock_guard<std::mutex> lock(mutex);
            failure = std::current_exception();
            next = total;
        }
    };
    std::vector<std::thread> threads;
    for (int i = 0; i < arguments.threads; ++i)
        threads.emplace_back(work);
    for (std::thread &thread : threads)
        thread.join();
    if (failure)
        std::rethrow_exception(failure);
    return results;
}

} // namespace

int main(int count, char **values)
{
    try {
        const Arguments arguments = parse(count, values);
        const std::vector<uint8_t> pixels = read(arguments.pictures);
        if (pixels.empty() || pixels.size() % (std::size_t{3} * arguments.width * arguments.height))
            throw std::runtime_error(arguments.pictures + ": expected whole pictures of 3 * WIDTH * HEIGHT bytes, found " +
                                     std::to_string(pixels.size()) + " bytes");
        iresnet::Options options;
        options.target = arguments.target;
        const iresnet::Runner runner(arguments.bundle, options);
        const auto start = std::chrono::steady_clock::now();
        const std::vector<Best> results = classify(runner, pixels, arguments);
        const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
        for (std::size_t i = 0; i < results.size(); ++i)
            std::printf("%zu %d %.6f %s\n", i, results[i].index, results[i].score, runner.label(results[i].index));
        std::fprintf(stderr, "%zu pictures, %d threads, %.0f pictures/s\n", results.size(), arguments.threads,
                     results.size() / seconds.count());
        return 0;
    } catch (const iresnet::Error &error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 10 + error.status();
    } catch (const std::exception &error) {
        std::fprintf(stderr, "error: %s\n", error.what());
        return 2;
    }
}
