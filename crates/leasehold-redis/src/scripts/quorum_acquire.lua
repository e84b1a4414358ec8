-- Acquires the lock exclusively, on a node of a quorum. KEYS: lock. ARGV: value, ttl in ms, value
-- of the waiter, flags (as in acquire.lua), the prefix of the lock's keys, the prefix of the node's
-- keys, the expected marker, the token that the new one must exceed, the token floor, the expected
-- run. Returns the token, as a string, or a refusal: see `refusal`. A lock with the same value is
-- granted again.
--
-- F = (token, owner) is the key `fence`: it never expires. As in acquire.lua only a refusal runs a
-- read-only command.
local lock, value, ttl, waiter, flags, base, node = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
if (redis.call('GETEX', node .. 'mark') or '') ~= ARGV[7] or run_of_server() ~= ARGV[10] then
  return redis.error_reply('LEASEMARK this node was marked anew, or has restarted')
end

local earlier, place
if string.find(flags, '[co]') then
  earlier, place = yield_to_earlier(base, waiter)
end

if earlier or not redis.call('SET', lock, value, 'NX', 'PX', ttl) then
  if redis.pcall('GETEX', lock) == value then
    redis.call('PEXPIRE', lock, ttl)
  else
    local why, left = 0, redis.call('PTTL', lock)
    if earlier and left == -2 then
      why, left = 1, offer(base, waiter, earlier)
    end
    if place or string.find(flags, 'w', 1, true) then
      register(base, 'writers', waiter, place)
    end
    return refusal(why, left, lock)
  end
end

-- No client's clock may push it further than an hour beyond ours.
local fence, top = base .. 'fence', node .. 'top'
local stored, highest, time = redis.pcall('GETEX', fence), redis.call('GETEX', top), redis.call('TIME')
local last = 0
if stored then
  last = type(stored) == 'string' and tonumber(string.match(stored, '^(%d+):')) or 2^53
end
local least = math.max(last, ARGV[8] + 0, math.min(ARGV[9] + 0, (time[1] + 3600) * 1000000)) + 1
if least >= 2^53 then
  redis.call('DEL', lock)
  return redis.error_reply('LEASETOKEN no token below 2^53 is left')
end
local token = string.format('%.0f', least)
redis.call('SET', fence, token .. ':' .. string.sub(value, 1, 32))
-- Ten seconds ahead, so that it is written seldom.
if not highest or least > tonumber(highest) then
  redis.call('SET', top, string.format('%.0f', math.min(least + 10000000, 2^53)))
end
if string.find(flags, 'r', 1, true) then
  deregister(base, 'writers', waiter, place)
end
return token
