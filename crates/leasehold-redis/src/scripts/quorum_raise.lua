-- Raises F to (token, owner), strictly: only while the owner holds the lock, and F is smaller or
-- equal to it. KEYS: lock. ARGV: value, token, the prefix of the lock's keys, the prefix of the
-- node's keys, the expected marker, `s` for a reader, the token that the node must exceed since it
-- rejoined, the expected run. Returns 1 if F has this value, 0 if the lock is not held, and the
-- token of F, as a string, if that is larger.
--
-- A larger token of another reader is accepted: while one reader holds the lock on this node, only
-- another reader can have drawn it.
local lock, value, token, base, node = KEYS[1], ARGV[1], ARGV[2] + 0, ARGV[3], ARGV[4]
if (redis.call('GETEX', node .. 'mark') or '') ~= ARGV[5] or run_of_server() ~= ARGV[8] then
  return redis.error_reply('LEASEMARK this node was marked anew, or has restarted')
end
local holder = redis.pcall('GETEX', lock)
local shared = ARGV[6] == 's'
if shared then
  local time = redis.call('TIME')
  if not holder or type(holder) == 'table' or string.sub(holder, 1, 7) ~= 'shared:' then
    return 0
  end
  redis.call('ZREMRANGEBYSCORE', base .. 'readers', '-inf', time[1] * 1000 + math.floor(time[2] / 1000))
  -- XX INCR 0 tests whether the member exists, and counts as a write.
  if not redis.call('ZADD', base .. 'readers', 'XX', 'INCR', 0, value) then
    return 0
  end
elseif holder ~= value then
  return 0
end
local fence, top = base .. 'fence', node .. 'top'
local ours = ARGV[2] .. ':' .. string.sub(value, 1, 32)
local stored, last = redis.call('GETEX', fence), ARGV[7] + 0
if last >= token then
  return string.format('%.0f', last)
end
if stored == ours then
  return 1
end
if stored then
  last = tonumber(string.match(stored, '^(%d+):')) or 2^53
end
if last >= token then
  if shared then
    return 1
  end
  return string.format('%.0f', last)
end
if token >= 2^53 then
  return redis.error_reply('LEASETOKEN no token below 2^53 is left')
end
redis.call('SET', fence, ours)
local highest = redis.call('GETEX', top)
if not highest or token > tonumber(highest) then
  redis.call('SET', top, string.format('%.0f', math.min(token + 10000000, 2^53)))
end
return 1
