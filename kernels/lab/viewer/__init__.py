"""Looking at what a kernel did on the emulator.

What belongs here: the states of warps, mbarriers and shared memory that recorded events imply (`history`,
    `smem`), what accumulators held (`accumulators`), where two runs differ (`differences`), how events read
    in English (`sentences`), the page that shows them (`page`, and its parts page.html, page.css, model.js,
    draw.js and page.js), stepping through them (`stepper`), and the `command`. What does not: recording
    (`gemm_ladder.lab.recording`), and turning events into spans of time (`gemm_ladder.timeline.spans`).
"""
