"""`isolation = "process"`: a model in a worker process of its own, forked from a warm parent. Linux only.

    serving process                    fork server (`zygote`)              worker process
    IsolatedModel  -- Fork, Reap -->   runtime imported, no model  fork ->  one model
        |                                                                       |
        +---- a lane for each call at once: socket (shapes) + memfd (tensors) ---+

The serving process has many threads and cannot fork safely; the fork server has one and can. A worker that crashes
takes nothing with it, and when it ends, all of its memory goes back to the kernel. No process outlives its parent: the
fork server ends when the socket to the serving process closes, and the kernel ends each worker with the fork server.
"""
