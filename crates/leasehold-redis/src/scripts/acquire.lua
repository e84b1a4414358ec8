-- Acquires the lock exclusively.
--
-- KEYS: lock, token counter, order of waiters, waiting writers, waiting readers
-- ARGV: value, ttl in ms, options (shared/acquisition.lua)
-- Returns the token as a string, or a refusal (shared/acquisition.lua).
--
-- Only a refusal runs a read-only command. Therefore a refusal arms the notification (CLIENT
-- TRACKING) in the same round trip, and uncontended pairs cause no push.
local lock, counter = KEYS[1], KEYS[2]
local lists = {order = KEYS[3], writers = KEYS[4], readers = KEYS[5]}
local value, ttl, option = ARGV[1], ARGV[2], options(3)

-- A yielding request goes behind all waiters.
local earlier, place
if option.yield or option.in_order then
  earlier, place = first_before(lists, value)
end

local taken = false
if option.draw_token then
  -- A key of another type is an error here, and so is a server that accepts no writes.
  taken = redis.call('GETEX', lock) == value
elseif not earlier then
  taken = redis.call('SET', lock, value, 'NX', 'PX', ttl)
end
if not taken then
  return refuse_writer(lock, lists, value, earlier, place, option.wait)
end

-- The token is above the last exclusive one, and never below the clock. A counter that cannot be
-- read, or leaves no token, is left as it was.
local life = counter_life(ttl)
local token = digits(NOW_MICROS)
local last = redis.pcall('SET', counter, token, 'EX', life, 'GET')
if type(last) == 'table' then
  redis.call('DEL', lock)
  return last
elseif last then
  local least = math.max(tonumber(last) or TOKEN_LIMIT, 0) + EXCLUSIVE_STEP
  if least >= TOKEN_LIMIT then
    redis.call('DEL', lock)
    redis.call('SET', counter, last, 'EX', life)
    return redis.error_reply(NO_TOKEN_LEFT)
  elseif least > NOW_MICROS then
    token = digits(least)
    redis.call('SET', counter, token, 'EX', life)
  end
end
if option.registered then
  dequeue(lists, lists.writers, value, place)
end
return token
