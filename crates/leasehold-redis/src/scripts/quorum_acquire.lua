-- Acquires the lock exclusively, on a node of a quorum. A lock with the same value is granted
-- again.
--
-- KEYS: lock, fence, order of waiters, waiting writers, waiting readers, mark, top
-- ARGV: value, ttl in ms, value of the waiter, expected marker, expected run, a token that the new
-- one must exceed, the token floor, options (shared/acquisition.lua)
-- Returns the token as a string, or a refusal (shared/acquisition.lua).
--
-- As in acquire.lua, only a refusal runs a read-only command.
local lock, fence, mark, top = KEYS[1], KEYS[2], KEYS[6], KEYS[7]
local lists = {order = KEYS[3], writers = KEYS[4], readers = KEYS[5]}
local value, ttl, waiter, option = ARGV[1], ARGV[2], ARGV[3], options(8)
local marker, run, above, floor = ARGV[4], ARGV[5], ARGV[6], ARGV[7]
if not is_unchanged(mark, marker, run) then
  return redis.error_reply(MARK_CHANGED)
end

local earlier, place
if option.yield or option.in_order then
  earlier, place = first_before(lists, waiter)
end

if earlier or not redis.call('SET', lock, value, 'NX', 'PX', ttl) then
  if value_of(lock) == value then
    redis.call('PEXPIRE', lock, ttl)
  else
    local reason, left = HELD, redis.call('PTTL', lock)
    if earlier and left == NO_KEY then
      reason, left = OFFERED, offer(lists, waiter, earlier)
    end
    if option.wait or place then
      enqueue(lists, lists.writers, waiter, place)
    end
    return refusal(reason, left, lock)
  end
end

local token = draw_token(fence, top, value, above, floor)
if not token then
  redis.call('DEL', lock)
  return redis.error_reply(NO_TOKEN_LEFT)
end
if option.registered then
  dequeue(lists, lists.writers, waiter, place)
end
return token
