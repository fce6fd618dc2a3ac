-- For wrk: POST the files of $BODIES in turn, with the headers of $HEADERS (a "name: value" a line). With $DELAY (ms), each
-- connection waits for a time of exponential distribution before a request, so that the load is below the largest.
local requests, delay_ms, at = {}, tonumber(os.getenv("DELAY") or "0"), 0

function init(args)
  local headers = {}
  for name, value in os.getenv("HEADERS"):gmatch("([^:\n]+): ([^\n]+)") do headers[name] = value end
  for path in io.popen("ls " .. os.getenv("BODIES") .. "/*"):lines() do
    local file = io.open(path, "rb")
    requests[#requests + 1] = wrk.format("POST", nil, headers, file:read("*a"))
    file:close()
  end
  math.randomseed(os.time())
end

function request()
  at = at % #requests + 1
  return requests[at]
end

if delay_ms > 0 then
  function delay() return math.floor(-math.log(1 - math.random()) * delay_ms + 0.5) end
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '\nJSON {"requests": %d, "seconds": %f, "p50": %f, "p99": %f, "failed": %d}\n', summary.requests,
    summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
