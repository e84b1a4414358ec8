-- Acquires the lock shared.
--
-- KEYS: lock, token counter, readers, order of waiters, waiting writers, waiting readers
-- ARGV: value, ttl in ms, the run of the server, options (shared/acquisition.lua)
-- Returns the token as a string, or a refusal (shared/acquisition.lua).
--
-- While readers hold the lock, its value is `shared:<owner>:<run>:<token>`.
local lock, counter, readers = KEYS[1], KEYS[2], KEYS[3]
local lists = {order = KEYS[4], writers = KEYS[5], readers = KEYS[6]}
local value, ttl, run, option = ARGV[1], ARGV[2] + 0, ARGV[3], options(4)

local holder, failure = value_of(lock)
if failure then
  return failure
elseif holder and not begins(holder, SHARED) then
  return refuse_reader(HELD, lock, lists, value, nil, option.wait)
end
-- A writer that came earlier goes first. A free lock is offered to it.
local ends = writer_before(lists, value)
if ends then
  return refuse_reader(holder and BEHIND_WRITER or OFFERED, lock, lists, value, ends, option.wait)
end

-- The token is one above the last exclusive one, and the clock. All readers that share have the
-- same one, so that none fences another off. Data of another run of the server may be older than
-- the last exclusive token: its readers' token is not used again.
local drawn_in, token = string.match(holder or '', '^' .. SHARED .. '%x+:([^:]+):(%d+)$')
local new_value
if drawn_in == run then
  redis.call('EXPIRE', counter, counter_life(ttl))
else
  local last = redis.pcall('INCRBY', counter, 0)
  if type(last) == 'table' then
    return last
  end
  last = math.max(last, NOW_MICROS)
  if last + EXCLUSIVE_STEP >= TOKEN_LIMIT then
    return redis.error_reply(NO_TOKEN_LEFT)
  end
  redis.call('SET', counter, digits(last), 'EX', counter_life(ttl))
  token = digits(last + 1)
  new_value = SHARED .. string.sub(value, 1, 32) .. ':' .. run .. ':' .. token
end

add_reader(lock, readers, not holder, new_value, value, ttl)
if option.registered then
  dequeue(lists, lists.readers, value)
end
return token
