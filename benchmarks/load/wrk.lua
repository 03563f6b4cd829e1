-- What wrk runs in each of its threads: asks for a random tenant's rows, and checks that they are that tenant's.
--
-- There are as many threads as connections, so each thread has one question under way and knows whose answer comes.
-- Arguments: a file with a line "host TAB cookie TAB mark TAB mark …" for each tenant, the most popular first; the
-- exponent of Zipf's law; a seed; how many milliseconds each connection waits before it asks again.

local threads = {}

function setup(thread)
    table.insert(threads, thread)
    thread:set("number", #threads)
end

function init(arguments)
    wrong, statuses = 0, {}
    local exponent = tonumber(arguments[2])
    pause = tonumber(arguments[4])
    tenants, weights, requests = {}, {}, {}
    local sum = 0
    for line in io.lines(arguments[1]) do
        local fields = {}
        for field in (line .. "\t"):gmatch("(.-)\t") do
            table.insert(fields, field)
        end
        local tenant = {host = fields[1], cookie = fields[2], marks = {}}
        for index = 3, #fields do
            table.insert(tenant.marks, fields[index])
        end
        table.insert(tenants, tenant)
        sum = sum + (#tenants) ^ -exponent
        weights[#tenants] = sum
    end
    math.randomseed(tonumber(arguments[3]) * 1000 + number)
    for _ = 1, 10 do
        math.random()
    end
end

local function draw()
    local wanted = math.random() * weights[#weights]
    local low, high = 1, #weights
    while low < high do
        local middle = math.floor((low + high) / 2)
        if weights[middle] < wanted then
            low = middle + 1
        else
            high = middle
        end
    end
    return low
end

function delay()
    return pause
end

function request()
    asked = draw()
    local text = requests[asked]
    if text == nil then
        local tenant = tenants[asked]
        text = wrk.format("GET", wrk.path, {["Host"] = tenant.host, ["Cookie"] = tenant.cookie})
        requests[asked] = text
    end
    return text
end

function response(status, headers, body)
    if status ~= 200 then
        local name = tostring(status)
        statuses[name] = (statuses[name] or 0) + 1
        return
    end
    for _, mark in ipairs(tenants[asked].marks) do
        if not body:find(mark, 1, true) then
            wrong = wrong + 1
            return
        end
    end
end

function done(summary, latency, _)
    local all_wrong, sums, refused = 0, {}, {}
    for _, thread in ipairs(threads) do
        all_wrong = all_wrong + thread:get("wrong")
        for status, count in pairs(thread:get("statuses")) do
            sums[status] = (sums[status] or 0) + count
        end
    end
    for status, count in pairs(sums) do
        table.insert(refused, string.format('"%s": %d', status, count))
    end
    local errors = summary.errors
    print(string.format(
        'RESULT {"requests": %d, "microseconds": %d, "wrong": %d, "refused": {%s}, "failed": %d, '
            .. '"p50": %f, "p99": %f}',
        summary.requests, summary.duration, all_wrong, table.concat(refused, ", "),
        errors.connect + errors.read + errors.write + errors.timeout,
        latency:percentile(50) / 1000, latency:percentile(99) / 1000
    ))
end
