-- The values of locks.
--
-- The value of an exclusive lock is that of its holder. The value of a shared lock begins with
-- SHARED. A holder whose lock was revoked has REVOKED before its value until the lock expires.
local SHARED, REVOKED = 'shared:', 'revoked:'
-- The reply to the renewal of a revoked lock.
local WAS_REVOKED = -1
-- Stands for the value of a key that is no string, and that another program has written.
local NO_STRING = true

-- Returns the value of a lock, or false if it is free. The second result is an error that says
-- nothing about the lock, such as that of a server that accepts no writes.
--
-- GETEX without options is a GET that counts as a write. Therefore it arms no notification of this
-- client (CLIENT TRACKING).
local function value_of(lock)
  local value = redis.pcall('GETEX', lock)
  if type(value) ~= 'table' then
    return value
  elseif string.find(value.err, 'WRONGTYPE', 1, true) then
    return NO_STRING
  end
  return nil, value
end

-- Returns whether a text begins so.
local function begins(text, beginning)
  return type(text) == 'string' and string.sub(text, 1, #beginning) == beginning
end

