-- Acquires the lock shared, on a node of a quorum. A lock with the same value is granted again.
--
-- KEYS: lock, fence, readers, order of waiters, waiting writers, waiting readers, mark, top
-- ARGV: as in quorum_acquire.lua
-- Returns the token as a string, or a refusal (shared/acquisition.lua).
--
-- As acquire_shared.lua, but each reader draws a token of its own. It is above the token of every
-- earlier writer at this node, and below that of every later writer.
local lock, fence, readers, mark, top = KEYS[1], KEYS[2], KEYS[3], KEYS[7], KEYS[8]
local lists = {order = KEYS[4], writers = KEYS[5], readers = KEYS[6]}
local value, ttl, waiter, option = ARGV[1], ARGV[2] + 0, ARGV[3], options(8)
local marker, run, above, floor = ARGV[4], ARGV[5], ARGV[6], ARGV[7]
if not is_unchanged(mark, marker, run) then
  return redis.error_reply(MARK_CHANGED)
end

local holder, failure = value_of(lock)
if failure then
  return failure
elseif holder and not begins(holder, SHARED) then
  return refuse_reader(HELD, lock, lists, waiter, nil, option.wait)
end
local ends = writer_before(lists, waiter)
if ends then
  return refuse_reader(holder and BEHIND_WRITER or OFFERED, lock, lists, waiter, ends, option.wait)
end

local text, token = draw_token(fence, value, above, floor)
if not token then
  return redis.error_reply(NO_TOKEN_LEFT)
end
raise_top(top, token)
local new_value = not holder and SHARED .. string.sub(value, 1, 32) or nil
add_reader(lock, readers, not holder, new_value, value, ttl)
if option.registered then
  dequeue(lists, lists.readers, waiter)
end
return text
