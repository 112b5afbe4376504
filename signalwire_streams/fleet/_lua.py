"""The Lua scripts that change a run in Redis, and calls of them for many items at once."""

from attrs import frozen


@frozen
class LuaCall:
    """One item's part of a script call for many items: keys that all items share, its own key, arguments."""

    source: str
    shared: tuple[str, ...]
    own: str
    values: tuple[object, ...]


def _for_each(step: str) -> str:
    """Return a script for many items of one run; *step* is what it does for one, given its key and its arguments.

    It takes the shared keys, the run's hash first, then one key per item; and as arguments the number of shared keys,
    then equally many for each item. It returns one word per item: ``ok``, ``taken`` (the mark is not the expected one),
    ``ended`` or ``gone`` (the run is).
    """
    return f"""
local counted, kept = {{}}, {{}}
local function count(name, more) counted[name] = (counted[name] or 0) + more end
local function keep(key, seconds) kept[key] = seconds end
local function is_claimed(mark) return string.sub(mark, 1, 2) == 'i:' end
local function step(key, own){step}end

local is_gone = redis.call('EXISTS', KEYS[1]) == 0
local shared = tonumber(ARGV[1])
local size = (#ARGV - 1) / (#KEYS - shared)
local replies = {{}}
for i = 1, #KEYS - shared do
  local own = {{}}
  for j = 1, size do own[j] = ARGV[1 + (i - 1) * size + j] end
  replies[i] = is_gone and 'gone' or step(KEYS[shared + i], own)
end
for name, more in pairs(counted) do redis.call('HINCRBY', KEYS[1], name, more) end
for key, seconds in pairs(kept) do redis.call('EXPIRE', key, seconds) end
return replies
"""


CLAIM_ITEM = _for_each("""
  local mark = redis.call('HGET', key, own[1]) or ''
  if mark == own[3] then return 'ok' end
  if redis.call('HEXISTS', KEYS[1], 'ended') == 1 then return 'ended' end
  if mark ~= own[2] then return 'taken' end
  redis.call('HSET', key, own[1], own[3])
  if not is_claimed(mark) then count('c:in_doubt', 1) end
  keep(key, own[4])
  return 'ok'
""")
"""Keys: run, marks. Arguments: index, expected mark, new mark, retention."""

COMPLETE_ITEM = _for_each("""
  local mark = redis.call('HGET', key, own[1]) or ''
  if mark == own[3] then return 'ok' end
  if mark ~= own[2] then return 'taken' end
  redis.call('HSET', key, own[1], own[3])
  redis.call('XADD', KEYS[2], '*', 'o', own[4])
  if is_claimed(mark) then count('c:in_doubt', -1) end
  count('c:' .. own[5], 1)
  count('attempts', tonumber(own[6]))
  if own[7] ~= '' then count('e:' .. own[7], 1) end
  keep(key, own[8])
  keep(KEYS[2], own[8])
  return 'ok'
""")
"""Keys: run, outcomes, marks. Arguments: index, expected mark, new mark, outcome, status, attempts, error label,
retention."""

RELEASE_ITEM = _for_each("""
  local mark = redis.call('HGET', key, own[1]) or ''
  if mark ~= own[2] then return 'taken' end
  if own[3] == '' then redis.call('HDEL', key, own[1]) else redis.call('HSET', key, own[1], own[3]) end
  count('c:in_doubt', -1)
  return 'ok'
""")
"""Keys: run, marks. Arguments: index, expected mark, mark to leave (empty: none)."""

MARK_STOPPED = _for_each("""
  if redis.call('HSET', key, own[1], '1') == 1 then count('stopped', 1) end
  keep(key, own[2])
  return 'ok'
""")
"""Keys: run, stopped items. Arguments: index, retention."""

CANCEL_RUN = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 'gone' end
if redis.call('HEXISTS', KEYS[1], 'ended') == 1 then return 'taken' end
redis.call('HSET', KEYS[1], 'ended', ARGV[1], 'reason', ARGV[2])
return 'ok'
"""
"""Keys: run. Arguments: how it ended, and the reason."""

CREATE_RUN = """
local digest = redis.call('HGET', KEYS[1], 'digest')
if digest then return digest == ARGV[2] and 'known' or 'other' end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'digest', ARGV[2], unpack(ARGV, 6))
redis.call('EXPIRE', KEYS[1], ARGV[1])
redis.call('ZADD', KEYS[2], ARGV[3], ARGV[4])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', ARGV[5])
return 'ok'
"""
"""Keys: run, runs. Arguments: retention, digest of the requests, expiry time, run, current time, fields and values."""

SET_ONCE = """
if redis.call('HEXISTS', KEYS[1], 'digest') == 0 then return 'gone' end
if ARGV[3] and redis.call('HEXISTS', KEYS[1], ARGV[3]) == 1 then return 'conflict' end
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) end
return redis.call('HGET', KEYS[1], ARGV[1])
"""
"""Keys: run. Arguments: field, value, and a field that must not be set. Returns the value that the field has then."""

UNSET = """
if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then redis.call('HDEL', KEYS[1], ARGV[1]) end
return 'ok'
"""
"""Keys: run. Arguments: field, the value that it must have."""

ACQUIRE_LEASE = """
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then return 'taken' end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 'ok'
"""

RENEW_LEASE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 'taken' end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 'ok'
"""

RELEASE_LEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 'ok'
"""
"""Keys of the three: lease. Arguments: owner, and the milliseconds for which it has the lease."""
