-- A node of a quorum. Its keys are `mark`, `since` and `top`; `fence` is that of a lock.
local MARK_CHANGED = 'LEASEMARK this node was marked anew, or has restarted'
-- The lead of `top` over the highest token, in us, so that it is written seldom.
local LEAD = 10000000
-- How far a client's clock may push tokens beyond this server's, in us.
local MAX_AHEAD = 3600000000

-- Returns the run of this server and the history of its data; '' without the right to INFO.
-- `run_id` changes with a restart, and `master_replid2` when a replica, which has the data of
-- another server, becomes a primary. Every script reads them: behind a proxy, the server can
-- restart while the connection stays.
local function run_of_server()
  local server, replication = redis.pcall('INFO', 'server'), redis.pcall('INFO', 'replication')
  if type(server) ~= 'string' or type(replication) ~= 'string' then
    return ''
  end
  local run, history = string.match(server, 'run_id:(%w+)'), string.match(replication, 'master_replid2:(%w+)')
  return run and run .. '-' .. (history or '') or ''
end

-- Returns whether the node still has this marker and is in this run.
local function is_unchanged(mark, expected_marker, expected_run)
  return (redis.call('GETEX', mark) or '') == expected_marker and run_of_server() == expected_run
end

-- Returns the token of a fence, `<token>:<owner>`; false means 0. Another value has no token below
-- the limit.
local function token_of(stored)
  if not stored then
    return 0
  end
  return type(stored) == 'string' and tonumber(string.match(stored, '^(%d+):')) or TOKEN_LIMIT
end

-- Returns what the fence of a lock has after this acquisition has drawn or received this token,
-- which is given as text.
local function fence_value(token, value)
  return token .. ':' .. string.sub(value, 1, 32)
end

-- Keeps `top` above all tokens of the node.
local function raise_top(top, token)
  local highest = redis.call('GETEX', top)
  if not highest or token > tonumber(highest) then
    redis.call('SET', top, digits(math.min(token + LEAD, TOKEN_LIMIT)))
  end
end

-- Draws a token above the last one of the lock, above `above`, and above `floor` as far as that is
-- not too far beyond the clock. Returns the token as text and as a number, or nil if none is left.
-- The caller raises `top`.
local function draw_token(fence, value, above, floor)
  local last = token_of(redis.pcall('GETEX', fence))
  local token = math.max(last, above + 0, math.min(floor + 0, NOW_MICROS + MAX_AHEAD)) + 1
  if token >= TOKEN_LIMIT then
    return nil
  end
  local text = digits(token)
  redis.call('SET', fence, fence_value(text, value))
  return text, token
end

