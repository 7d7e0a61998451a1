//! How long a plan takes on the GPU alone, without the host: launches captured into a graph that is replayed.
//!
//! *In*: a plan and views of the host's memory, which are copied once. *Out*: seconds a launch. *Callers*: the facade, for
//! benchmarks.

use cudarc::driver::{result, sys};
use einfall_plan::{Plan, RunError};
use einfall_tensor::{Tensor, View};

use crate::device::{Copied, CudaDevice};
use crate::driver::{DevicePointer, Gpu, Memory, Stream, checked};
use crate::{CudaError, check};

impl CudaDevice {
    /// Seconds of a launch in each of `rounds` replays of a graph of `launches` of them, after one that is not counted.
    ///
    /// Every launch reads the same inputs and writes the same output, so what fits in the GPU's cache stays there. All
    /// that this allocates it frees.
    ///
    /// # Errors
    /// As [`Device::run`](einfall_plan::Device::run) for a new row-major result; memory of the GPU that is not there.
    ///
    /// # Safety
    /// As [`Device::run`](einfall_plan::Device::run): the plan is what [`Plan::new`] made with this device's machine and
    /// kernels, unchanged.
    pub unsafe fn replay_seconds(
        &self,
        plan: &Plan,
        arguments: &[View<'_>],
        launches: usize,
        rounds: usize,
    ) -> Result<Vec<f64>, RunError> {
        let output = &plan.problem.output;
        let out_bytes = {
            // A result of this layout, which is compared and never touched.
            // SAFETY: nothing reads it.
            let result = unsafe { Tensor::uninit(output.dtype, &output.layout.shape) };
            let mut result = result.map_err(|error| RunError::Device { reason: error.to_string() })?;
            plan.check_arguments(arguments, &result.view_mut())?;
            result.view().byte_range().map_or(0, |(start, end)| end - start)
        };
        let gpu = self.gpu();
        let copies = arguments.iter().map(|view| Copied::of(gpu, view));
        let copies = copies.collect::<Result<Vec<_>, _>>()?;
        let pointers: Vec<DevicePointer> = copies.iter().map(|copy| copy.first).collect();
        let out = Memory::new(gpu, out_bytes)?;
        let program = self.prepare(plan, &[&pointers[..], &[out.pointer()]].concat())?;
        let workspace = Memory::new(gpu, program.workspace_bytes)?;
        let _alone = self.alone();
        self.take_bad_table();
        let launches = launches.max(1);
        let graph = Graph::captured(gpu, |stream| {
            for _ in 0..launches {
                // SAFETY: the copies are as large as the views, whose layouts were compared with the plan; they outlive
                // the graph, which is declared after them.
                unsafe { self.launch(&program, &pointers, out.pointer(), workspace.pointer(), stream)? };
            }
            Ok(())
        })?;
        graph.replay()?;
        let mut seconds = Vec::with_capacity(rounds);
        for _ in 0..rounds {
            seconds.push(graph.replay()? / launches as f64);
        }
        if self.take_bad_table() {
            return Err(check::first_bad_value(plan, arguments).unwrap_or(RunError::Changed));
        }
        Ok(seconds)
    }
}

/// A stream of our own, with two events to measure in it.
struct Clock<'a> {
    gpu: &'a Gpu,
    stream: sys::CUstream,
    events: [sys::CUevent; 2],
}

impl<'a> Clock<'a> {
    fn new(gpu: &'a Gpu) -> Result<Self, CudaError> {
        gpu.current(|| {
            let mut clock = Clock { gpu, stream: std::ptr::null_mut(), events: [std::ptr::null_mut(); 2] };
            // What was made before one fails is destroyed with `clock`.
            clock.stream = checked("cuStreamCreate", result::stream::create(result::stream::StreamKind::NonBlocking))?;
            for event in &mut clock.events {
                *event = checked("cuEventCreate", result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT))?;
            }
            // Copies of pageable memory may still be on their way, which a stream of this kind does not wait for.
            checked("cuCtxSynchronize", result::ctx::synchronize())?;
            Ok(clock)
        })
    }
}

impl Drop for Clock<'_> {
    fn drop(&mut self) {
        let _ = self.gpu.current(|| {
            // SAFETY: `context`: made by `new`, destroyed once. An error here means that the context is gone.
            unsafe {
                for &event in self.events.iter().filter(|event| !event.is_null()) {
                    let _ = result::event::destroy(event);
                }
                if !self.stream.is_null() {
                    let _ = result::stream::synchronize(self.stream);
                    let _ = result::stream::destroy(self.stream);
                }
            }
            Ok(())
        });
    }
}

/// Work that was captured, ready to be replayed.
struct Graph<'a> {
    clock: Clock<'a>,
    graph: sys::CUgraph,
    exec: sys::CUgraphExec,
}

impl<'a> Graph<'a> {
    /// Captures what `work` puts into a stream.
    fn captured(gpu: &'a Gpu, work: impl FnOnce(Stream) -> Result<(), CudaError>) -> Result<Self, CudaError> {
        let clock = Clock::new(gpu)?;
        let stream = clock.stream;
        let mut graph = Graph { clock, graph: std::ptr::null_mut(), exec: std::ptr::null_mut() };
        gpu.current(|| {
            let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
            // SAFETY: the stream is `clock`'s; a capture that was begun is ended, whatever `work` did.
            unsafe {
                checked("cuStreamBeginCapture", result::stream::begin_capture(stream, mode))?;
                let captured = work(stream.cast());
                let ended = checked("cuStreamEndCapture", result::stream::end_capture(stream));
                captured?;
                graph.graph = ended?;
                let flags = sys::CUgraphInstantiate_flags(0);
                graph.exec = checked("cuGraphInstantiate", result::graph::instantiate(graph.graph, flags))?;
            }
            Ok(())
        })?;
        Ok(graph)
    }

    /// Runs it once, waits for it, and gives its seconds.
    fn replay(&self) -> Result<f64, CudaError> {
        let Clock { gpu, stream, events: [before, after] } = self.clock;
        // SAFETY: `context`: all of them were made by `new` and `captured`, and live as long as `self`.
        gpu.current(|| unsafe {
            checked("cuEventRecord", result::event::record(before, stream))?;
            checked("cuGraphLaunch", result::graph::launch(self.exec, stream))?;
            checked("cuEventRecord", result::event::record(after, stream))?;
            checked("cuEventSynchronize", result::event::synchronize(after))?;
            let milliseconds = checked("cuEventElapsedTime", result::event::elapsed(before, after))?;
            Ok(f64::from(milliseconds) * 1e-3)
        })
    }
}

impl Drop for Graph<'_> {
    fn drop(&mut self) {
        let _ = self.clock.gpu.current(|| {
            // SAFETY: `context`: made by `captured`, destroyed once; the clock, whose stream may still run it, goes after.
            unsafe {
                let _ = result::stream::synchronize(self.clock.stream);
                if !self.exec.is_null() {
                    let _ = result::graph::exec_destroy(self.exec);
                }
                if !self.graph.is_null() {
                    let _ = result::graph::destroy(self.graph);
                }
            }
            Ok(())
        });
    }
}
