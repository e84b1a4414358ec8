-- Raises the fence to (token, owner), strictly: only while the owner holds the lock, and the fence
-- is smaller or equal to it.
--
-- KEYS: lock, fence, readers, mark, top
-- ARGV: value, token, expected marker, expected run, a token that the node must exceed, `shared` or
-- `exclusive`
-- Returns 1 if the fence has this value, 0 if the lock is not held, and the token of the fence, as
-- a string, if that is larger.
local lock, fence, readers, mark, top = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local value, token, marker, run = ARGV[1], ARGV[2] + 0, ARGV[3], ARGV[4]
local above, shared = ARGV[5] + 0, ARGV[6] == 'shared'
if not is_unchanged(mark, marker, run) then
  return redis.error_reply(MARK_CHANGED)
end

local holder = value_of(lock)
if shared then
  if not begins(holder, SHARED) then
    return 0
  end
  expire_members(readers)
  if not has_member(readers, value) then
    return 0
  end
elseif holder ~= value then
  return 0
end

if above >= token then
  return digits(above)
end
local stored, ours = redis.call('GETEX', fence), fence_value(digits(token), value)
if stored == ours then
  return 1
end
local last = token_of(stored)
if last >= token then
  -- While one reader holds the lock on this node, only another reader can have drawn a larger
  -- token, which is accepted.
  return shared and 1 or digits(last)
end
if token >= TOKEN_LIMIT then
  return redis.error_reply(NO_TOKEN_LEFT)
end
redis.call('SET', fence, ours)
raise_top(top, token)
return 1
