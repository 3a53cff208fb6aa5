-- Forms as a browser posts them, each from an IPv4 network of its own (the last argument is the round's salt).
local thread_salt, count, refused = 0, 0, 0
local body = "name=Ana+Lima&email=ana%40example.com&message=" ..
    string.rep("We+would+like+to+hear+more+about+your+offer%2C+and+when+somebody+could+call+us+back.+", 2)

function init(args)
    thread_salt = tonumber(args[1]) or 0
    wrk.method = "POST"
end

function request()
    count = count + 1
    local address = string.format("%d.%d.%d.%d", 1 + thread_salt % 220, math.floor(count / 65536) % 256,
        math.floor(count / 256) % 256, count % 256)
    return wrk.format(nil, "/api/leads", {
        ["Content-Type"] = "application/x-www-form-urlencoded",
        ["X-Forwarded-For"] = address,
    }, body)
end

function done(summary, latency, _)
    -- `summary.errors.status` counts every answer of 400 and above.
    local bad = summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.write +
        summary.errors.timeout
    io.write(string.format(
        '{"ok": %d, "refused": %d, "seconds": %.6f, "p50_ms": %.3f, "p99_ms": %.3f, "max_ms": %.3f}\n',
        summary.requests - summary.errors.status, bad, summary.duration / 1e6, latency:percentile(50) / 1000,
        latency:percentile(99) / 1000, latency.max / 1000))
end
