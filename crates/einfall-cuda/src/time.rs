//! How long a plan takes on the GPU alone, without the host: launches captured into a graph that is replayed.
//!
//! *In*: a plan, of a contraction or of attention, and views of the host's memory, which are copied once. *Out*: seconds
//! a launch. *Callers*: the facade, for benchmarks.

use cudarc::driver::{result, sys};
use einfall_plan::{AttentionPlan, Plan, RunError, Saved};
use einfall_tensor::{DType, Tensor, View};

use crate::attention::AttentionPointers;
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
        let seconds = self.replays(launches, rounds, |stream| {
            // SAFETY: the copies are as large as the views, whose layouts were compared with the plan; they outlive the
            // graph, which is gone when this returns.
            unsafe { self.launch(&program, &pointers, out.pointer(), workspace.pointer(), stream) }
        })?;
        if self.take_bad_table() {
            return Err(check::first_bad_value(plan, arguments).unwrap_or(RunError::Changed));
        }
        Ok(seconds)
    }

    /// As [`CudaDevice::replay_seconds`], of attention: forward, or forward with the log-sum-exp and then the gradients,
    /// whose plan comes with the gradient of the output.
    ///
    /// # Errors
    /// As [`Device::attend`](einfall_plan::Device::attend) and
    /// [`Device::attend_backward`](einfall_plan::Device::attend_backward); memory of the GPU that is not there.
    ///
    /// # Safety
    /// As these two: the plans are what [`AttentionPlan::new`] made with this device's machine and kernels of attention,
    /// unchanged.
    pub unsafe fn replay_attention_seconds(
        &self,
        forward: &AttentionPlan,
        backward: Option<(&AttentionPlan, &View<'_>)>,
        arguments: &[View<'_>],
        launches: usize,
        rounds: usize,
    ) -> Result<Vec<f64>, RunError> {
        let gpu = self.gpu();
        // Arrays of these layouts, which are compared and never touched.
        let array = |dtype: DType, shape: &[usize]| {
            // SAFETY: nothing reads it.
            unsafe { Tensor::uninit(dtype, shape) }.map_err(|error| RunError::Device { reason: error.to_string() })
        };
        let output = &forward.problem.output;
        let mut out = array(output.dtype, &output.layout.shape)?;
        let mut lse = array(forward.attention.accumulator, &forward.lse.shape)?;
        forward.check_forward(arguments, &out.view_mut(), Some(&lse.view_mut()))?;
        let mut gradients: [Option<Tensor>; 4] = [None, None, None, None];
        if let Some((plan, grad_out)) = backward {
            for (operand, gradient) in gradients.iter_mut().enumerate().filter(|&(operand, _)| plan.wanted[operand]) {
                let argument = &plan.arguments[plan.problem.operands[operand].argument];
                *gradient = Some(array(argument.dtype, &argument.layout.shape)?);
            }
            let views = gradients.each_mut().map(|gradient| gradient.as_mut().map(Tensor::view_mut));
            let saved = Saved { out: out.view(), lse: lse.view(), grad_out: grad_out.clone() };
            plan.check_backward(arguments, &saved, &views)?;
        }
        check::lists(forward, arguments)?;
        let copies = arguments.iter().map(|view| Copied::of(gpu, view)).collect::<Result<Vec<_>, _>>()?;
        let given: Vec<DevicePointer> = copies.iter().map(|copy| copy.first).collect();
        let out = Copied::to(gpu, &mut out.view_mut())?;
        let lse = Copied::to(gpu, &mut lse.view_mut())?;
        let log_sum = if backward.is_some() { lse.first } else { 0 };
        let pointers = AttentionPointers { arguments: &given, out: out.first, lse: log_sum, ..Default::default() };
        let mut passes = vec![(self.prepare_attention(forward, &pointers)?, pointers)];
        // What the second pass reads and writes has to outlive the graph.
        let (mut grad_out_copy, mut written) = (None, Vec::new());
        if let Some((plan, grad_out)) = backward {
            let grad_out = &*grad_out_copy.insert(Copied::of(gpu, grad_out)?);
            for gradient in &mut gradients {
                let space = gradient.as_mut().map(|gradient| Copied::to(gpu, &mut gradient.view_mut()));
                written.push(space.transpose()?);
            }
            let gradients = [0, 1, 2, 3].map(|at: usize| written[at].as_ref().map_or(0, |copy| copy.first));
            let pointers = AttentionPointers { grad_out: grad_out.first, gradients, ..pointers };
            passes.push((self.prepare_attention(plan, &pointers)?, pointers));
        }
        let workspace = passes.iter().map(|(program, _)| program.workspace_bytes()).max();
        let workspace = Memory::new(gpu, workspace.unwrap_or(0))?;
        let _alone = self.alone();
        self.take_bad_table();
        let seconds = self.replays(launches, rounds, |stream| {
            passes.iter().try_for_each(|(program, pointers)| {
                // SAFETY: the copies are as large as the views, whose layouts were compared with the plans; they outlive
                // the graph, which is gone when this returns. The second pass is after the first in the stream.
                unsafe { self.launch_attention(program, pointers, workspace.pointer(), stream) }
            })
        })?;
        if self.take_bad_table() {
            return Err(RunError::Changed);
        }
        Ok(seconds)
    }

    /// Seconds of a launch in each of `rounds` replays of `launches` in one graph, after one that is not counted.
    fn replays(
        &self,
        launches: usize,
        rounds: usize,
        launch: impl Fn(Stream) -> Result<(), CudaError>,
    ) -> Result<Vec<f64>, CudaError> {
        let launches = launches.max(1);
        let graph = Graph::captured(self.gpu(), |stream| (0..launches).try_for_each(|_| launch(stream)))?;
        graph.replay()?;
        (0..rounds).map(|_| Ok(graph.replay()? / launches as f64)).collect()
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
