-- What all scripts that acquire have in common: their options and their refusals.
--
-- An option is a word after the other arguments:
--
--   wait        the request waits: register it if it is refused
--   yield       refuse it while another request waits
--   registered  an earlier attempt of the request may have registered it
--   in_order    refuse it while an earlier request waits
--   draw_token  it holds the lock already, and has no token yet (exclusive only)
--
-- Returns the options among the arguments from `first` to `last`, or to the end.
local function options(first, last)
  local given = {}
  for i = first, last or #ARGV do
    given[ARGV[i]] = true
  end
  return given
end

-- A refusal is {reason, left, holder, ends}:
--
--   reason  one of the three below
--   left    the ms until the next attempt is useful; negative if the lock never expires
--   holder  the value of the holder; '' if there is none, or it is no string
--   ends    the time in ms at which its lock expires; -1 for never
--
-- A waiter that finds `holder` and `ends` again knows that nothing has changed.
local HELD = 0            -- the lock is held
local OFFERED = 1         -- the lock is free, and offered to an earlier waiter
local BEHIND_WRITER = 2   -- readers hold the lock, but a writer waits

-- What PTTL returns for a key that does not exist.
local NO_KEY = -2

-- Returns the refusal of a lock. Reading the lock arms its notification.
local function refusal(reason, left, lock, ends)
  local holder = redis.pcall('GET', lock)
  if type(holder) ~= 'string' then
    holder = ''
  end
  return {reason, left, holder, ends or (left < 0 and -1 or NOW + left)}
end

