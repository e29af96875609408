-- The load, for wrk: the callbacks of a file, one a line, each sent once and in their order.
--
--   wrk --script load.lua URL -- FILE       without a FILE, GET requests
--
-- Prints one line of JSON: requests, microseconds, latencies in microseconds, failures, and whether the file was long enough.

-- Global, so that `done` can ask for it.
wrapped = 0
local requests, at = {}, 0

function init(arguments)
  if arguments[1] then
    local headers = {["Content-Type"] = "application/x-www-form-urlencoded"}
    for line in io.lines(arguments[1]) do
      requests[#requests + 1] = wrk.format("POST", nil, headers, line)
    end
  else
    requests[1] = wrk.format("GET")
  end
end

function request()
  at = at + 1
  if at > #requests then
    at, wrapped = 1, wrapped + 1
  end
  return requests[at]
end

-- One thread only: `scripts/bench` starts wrk with -t1.
local the_thread
function setup(thread) the_thread = thread end

function done(summary, latency)
  local errors = summary.errors
  print(string.format(
    '{"requests": %d, "us": %d, "p50": %d, "p99": %d, "p99.9": %d, "failed": %d, "wrapped": %d}',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), latency:percentile(99.9),
    errors.status + errors.read + errors.write + errors.timeout + errors.connect, the_thread:get("wrapped")))
end
