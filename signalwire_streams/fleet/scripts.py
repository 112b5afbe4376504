"""What must be one step in Redis, as Lua: a start has one owner at a time, and one outcome.

A start's mark is a field of its batch's hash: nothing (not sent), ``i:OWNER`` (that owner may have sent it), or
``f:STATE:AMBIGUOUS:SID`` (settled). Each step says what mark it believes to be there, and does nothing where
another is, so that whoever was replaced can do no harm, and a step that is sent twice is done once.
"""

INTEND = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 'gone' end
if redis.call('HEXISTS', KEYS[1], 'ended') == 1 then return 'ended' end
local mark = redis.call('HGET', KEYS[2], ARGV[1]) or ''
if mark == ARGV[3] then return 'ok' end
if mark ~= ARGV[2] then return 'taken' end
redis.call('HSET', KEYS[2], ARGV[1], ARGV[3])
if mark == '' then redis.call('HINCRBY', KEYS[1], 'c:intended', 1) end
redis.call('EXPIRE', KEYS[2], ARGV[4])
return 'ok'
"""
"""Keys: run, marks. Arguments: index, the mark that is believed, the new one, seconds to keep it."""

SETTLE = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 'gone' end
local mark = redis.call('HGET', KEYS[2], ARGV[1]) or ''
if mark ~= ARGV[2] then return 'taken' end
redis.call('HSET', KEYS[2], ARGV[1], ARGV[3])
redis.call('XADD', KEYS[3], '*', 'o', ARGV[4])
if mark ~= '' then redis.call('HINCRBY', KEYS[1], 'c:intended', -1) end
redis.call('HINCRBY', KEYS[1], 'c:' .. ARGV[5], 1)
redis.call('HINCRBY', KEYS[1], 'attempts', ARGV[6])
if ARGV[7] ~= '' then redis.call('HINCRBY', KEYS[1], 'e:' .. ARGV[7], 1) end
redis.call('EXPIRE', KEYS[2], ARGV[8])
redis.call('EXPIRE', KEYS[3], ARGV[8])
return 'ok'
"""
"""Keys: run, marks, outcomes. Arguments: index, the mark that is believed, the new one, the outcome, its state, how
many attempts it took, its error's label, seconds to keep it."""

RELEASE = """
local mark = redis.call('HGET', KEYS[2], ARGV[1]) or ''
if mark ~= ARGV[2] then return 'taken' end
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('HINCRBY', KEYS[1], 'c:intended', -1)
return 'ok'
"""
"""Keys: run, marks. Arguments: index, the mark that is believed."""

END = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 'gone' end
if redis.call('HEXISTS', KEYS[1], 'ended') == 1 then return 'taken' end
redis.call('HSET', KEYS[1], 'ended', ARGV[1])
redis.call('HSET', KEYS[1], 'why', ARGV[2])
return 'ok'
"""
"""Keys: run. Arguments: how it ended, and why in words."""

PLAN = """
local digest = redis.call('HGET', KEYS[1], 'digest')
if digest then
  if digest == ARGV[2] then return 'known' end
  return 'other'
end
for i = 3, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
redis.call('HSET', KEYS[1], 'digest', ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[1])
return 'ok'
"""
"""Keys: run. Arguments: seconds to keep it, the plan's digest, the run's facts by name."""

UNDO = """
if redis.call('HSET', KEYS[2], ARGV[1], '1') == 1 then redis.call('HINCRBY', KEYS[1], 'undone', 1) end
redis.call('EXPIRE', KEYS[2], ARGV[2])
return 'ok'
"""
"""Keys: run, what was stopped again. Arguments: index, seconds to keep it."""

HOLD = """
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then return 'taken' end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 'ok'
"""
"""Keys: a batch's lease. Arguments: owner, milliseconds."""

RENEW = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 'taken' end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 'ok'
"""
"""Keys: a batch's lease. Arguments: owner, milliseconds."""

LET_GO = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 'ok'
"""
"""Keys: a batch's lease. Arguments: owner."""
