-- Refuses a request for the exclusive lock. `ends` is the end of the registration of the waiter
-- before it. `place` is its own place in the order, if it was the first.
local function refuse_writer(lock, lists, writer, ends, place, waits)
  local reason, left = HELD, redis.call('PTTL', lock)
  if ends and left == NO_KEY then
    reason, left = OFFERED, offer(lists, writer, ends)
  end
  if waits or place then
    enqueue(lists, lists.writers, writer, place)
  end
  return refusal(reason, left, lock)
end

