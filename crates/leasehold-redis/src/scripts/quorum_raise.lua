-- Raises F to (token, ours), strictly: only while the lock is ours, and F is smaller or is this
-- very one. KEYS: lock. ARGV: value, token, what the lock's other keys begin with, what the node's
-- own keys begin with, the mark that the node must execute, `s` for a reader, the token that the
-- node must exceed since it rejoined, the run that it must be in. 1: F stands there; 0: the lock is
-- not ours; a string: F has this token.
--
-- Among readers a larger token is as good: while one of them holds here, only another of them can
-- have drawn it.
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
  -- XX INCR 0 says whether the member is there, and counts as a write.
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
