-- Acquires locks exclusively, on a node of a quorum. A lock with the same value is granted again.
--
-- KEYS: mark, top; then for each lock: lock, fence, order of waiters, waiting writers, waiting
-- readers
-- ARGV: expected marker, expected run, a token that the new ones must exceed; then for each lock:
-- value, ttl in ms, value of the waiter, the token floor, the number of options, and the options
-- (shared/acquisition.lua)
-- Returns the tokens, separated by spaces, if all locks are granted; otherwise a list that has for
-- each lock its token as a string, its refusal (shared/acquisition.lua), or its error. Fails, and
-- has written nothing, if the marker or the run is another.
--
-- One script acquires several locks, because comparing the run takes longer than acquiring a lock.
-- As in acquire.lua, only a refusal runs a read-only command.
local mark, top = KEYS[1], KEYS[2]
local marker, run, above = ARGV[1], ARGV[2], ARGV[3]
if not is_unchanged(mark, marker, run) then
  return redis.error_reply(MARK_CHANGED)
end

-- The highest token that was drawn.
local highest = 0

-- Acquires the lock whose keys and arguments begin there.
local function acquire(key, arg, option)
  local lock, fence = KEYS[key], KEYS[key + 1]
  local lists = {order = KEYS[key + 2], writers = KEYS[key + 3], readers = KEYS[key + 4]}
  local value, ttl, waiter, floor = ARGV[arg], ARGV[arg + 1], ARGV[arg + 2], ARGV[arg + 3]

  local earlier, place
  if option.yield or option.in_order then
    earlier, place = first_before(lists, waiter)
  end

  if earlier or not redis.call('SET', lock, value, 'NX', 'PX', ttl) then
    if value_of(lock) ~= value then
      return refuse_writer(lock, lists, waiter, earlier, place, option.wait)
    end
    redis.call('PEXPIRE', lock, ttl)
  end

  local text, token = draw_token(fence, value, above, floor)
  if not token then
    redis.call('DEL', lock)
    return redis.error_reply(NO_TOKEN_LEFT)
  end
  highest = math.max(highest, token)
  if option.registered then
    dequeue(lists, lists.writers, waiter, place)
  end
  return text
end

local answers, all_granted, arg = {}, true, 4
for key = 3, #KEYS, 5 do
  local first = arg + 5
  local next_arg = first + ARGV[arg + 4]
  local done, answer = pcall(acquire, key, arg, options(first, next_arg - 1))
  -- An error is raised as text, which begins with its code, or in Redis 6.2 with a place.
  if not done then
    local text = type(answer) == 'table' and answer.err or answer
    answer = redis.error_reply(string.find(text, '^%u+ ') and text or 'ERR ' .. text)
  end
  answers[#answers + 1] = answer
  all_granted = all_granted and type(answer) == 'string'
  arg = next_arg
end
if highest > 0 then
  raise_top(top, highest)
end
-- For a list, the server allocates a block of 16 KiB.
return all_granted and table.concat(answers, ' ') or answers
