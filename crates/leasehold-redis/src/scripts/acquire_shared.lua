-- Acquires the lock shared. KEYS: lock, writers. ARGV: value, ttl in ms, token key, flags (as in
-- acquire.lua), the prefix of the keys of waiters, the run of the server. Returns the token, as a
-- string, or a refusal: see `refusal`.
--
-- While readers hold the lock, its key is a string that expires with the last of them, so that
-- programs without readers see it as held: `shared:<owner>:<run>:<token>`. GETEX without options is
-- a GET that counts as a write, so it arms no push.
local lock, writers, value, ttl, token_key, flags = KEYS[1], KEYS[2], ARGV[1], ARGV[2] + 0, ARGV[3], ARGV[4]
local base, run, time = ARGV[5], ARGV[6], redis.call('TIME')
local readers, now = base .. 'readers', millis(time)

local function refuse(why, ends)
  local left, last = redis.call('PTTL', lock), redis.call('ZREVRANGE', writers, 0, 0, 'WITHSCORES')[2]
  -- A reader is woken by a change of the lock and of the list of writers.
  local seen = now + left + (last or 0)
  if why == 1 then
    left = offer(base, value, ends)
  elseif why == 2 then
    left = last - now
  end
  if string.find(flags, 'w', 1, true) then
    register(base, 'waiters', value)
  end
  return refusal(why, left, lock, seen)
end

local holder = redis.pcall('GETEX', lock)
if holder and (type(holder) == 'table' or string.sub(holder, 1, 7) ~= 'shared:') then
  return refuse(0)
end
-- A writer that came earlier goes first. A free lock is offered to it.
local ends = writer_ahead(base, value)
if ends then
  return refuse(holder and 2 or 1, ends)
end

-- The token is one above the last exclusive one, and the clock. All readers that share have the
-- same one, so that none fences another off. Data of another run of the server may be older than
-- the last exclusive token: its readers' token is not used again.
local expiry = 86400
if ttl > 43200000 then
  expiry = math.ceil(ttl / 500)
end
local drawn_in, token = string.match(holder or '', '^shared:%x+:([^:]+):(%d+)$')
token = drawn_in == run and token + 0
local shared
if token then
  redis.call('EXPIRE', token_key, expiry)
else
  local last = redis.pcall('INCRBY', token_key, 0)
  if type(last) == 'table' then
    return last
  end
  local least = math.max(last, time[1] * 1000000 + time[2])
  if least + 2 >= 2^53 then
    return redis.error_reply('LEASETOKEN no token below 2^53 is left')
  end
  redis.call('SET', token_key, string.format('%.0f', least), 'EX', expiry)
  token = least + 1
  shared = 'shared:' .. string.sub(value, 1, 32) .. ':' .. run .. ':' .. string.format('%.0f', token)
end

if not holder then
  -- Whoever is still listed held it before the key vanished, and lost it then.
  redis.call('DEL', readers)
  redis.call('SET', lock, shared, 'PX', ttl)
else
  redis.call('ZREMRANGEBYSCORE', readers, '-inf', now)
  if shared then
    redis.call('SET', lock, shared, 'KEEPTTL')
  end
  if redis.call('PTTL', lock) < ttl then
    redis.call('PEXPIRE', lock, ttl)
  end
end
redis.call('ZADD', readers, now + ttl, value)
redis.call('PEXPIRE', readers, math.max(ttl + 1000, redis.call('PTTL', readers)))
if string.find(flags, 'r', 1, true) then
  deregister(base, 'waiters', value)
end
return string.format('%.0f', token)
