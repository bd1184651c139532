-- One workload for wrk: random tasks of random users, each asked for with the user's own token.
-- wrk ... -s wrk.lua URL -- WORKLOAD USERS-FILE SEED; the file has lines of `user token task task ...`.

local users = {}
local random = math.random
local now = os.time()  -- in a title, so that no run writes what an earlier one, of another peer, has written already

local function head(method, user, rest)
  return method .. " /api/" .. user.id .. "/tasks" .. rest .. " HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer "
    .. user.token .. "\r\n"
end

local function with_body(first_lines, body)
  return first_lines .. "Content-Type: application/json\r\nContent-Length: " .. #body .. "\r\n\r\n" .. body
end

local function any_task(user)
  return "/" .. user.tasks[random(#user.tasks)]
end

local workloads = {
  one = function(user) return head("GET", user, any_task(user)) .. "\r\n" end,
  list = function(user) return head("GET", user, "") .. "\r\n" end,
  -- `*` holds for every list that there is, whatever the other workloads have written
  unchanged = function(user) return head("GET", user, "") .. "If-None-Match: *\r\n\r\n" end,
  create = function(user)
    return with_body(head("POST", user, ""),
      '{"title": "Call the plumber ' .. random(1000000) .. '", "description": "before noon", "priority": "high"}')
  end,
  complete = function(user) return head("PATCH", user, any_task(user) .. "/complete") .. "Content-Length: 0\r\n\r\n" end,
  update = function(user)
    return with_body(head("PUT", user, any_task(user)), '{"title": "Call the plumber ' .. now .. " " .. random(1000000) .. '"}')
  end,
}

-- 192 words, all of which every task of the searcher has (database.py writes the same): aa ab … hj
function workloads.search(user)
  local words = {}
  for i = 0, 191 do words[#words + 1] = string.char(97 + math.floor(i / 26), 97 + i % 26) end
  return head("GET", user, "?q=" .. table.concat(words, "+")) .. "\r\n"
end

-- 80 % reads
function workloads.mix(user)
  local dice = random(100)
  if dice <= 60 then return workloads.one(user) end
  if dice <= 80 then return workloads.list(user) end
  if dice <= 86 then return workloads.create(user) end
  if dice <= 93 then return workloads.complete(user) end
  return workloads.update(user)
end

local workload

function init(args)
  workload = assert(workloads[args[1]], "no such workload")
  for line in io.lines(args[2]) do
    local words = {}
    for word in line:gmatch("%S+") do words[#words + 1] = word end
    users[#users + 1] = { id = words[1], token = words[2], tasks = { unpack(words, 3) } }
  end
  math.randomseed(tonumber(args[3]))  -- in one round, every peer is asked for the same
end

function request()
  return workload(users[random(#users)])
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests": %d, "seconds": %.6f, "p50": %.3f, "p99": %.3f, "status": %d, "connect": %d, "read": %d, '
      .. '"write": %d, "timeout": %d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    errors.status, errors.connect, errors.read, errors.write, errors.timeout))
end
